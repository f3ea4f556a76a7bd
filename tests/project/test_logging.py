"""The reference site's log: one record is one line, whoever chose its words."""

from __future__ import annotations

import logging.config

from django.conf import settings


def test_words_of_strangers_forge_no_line() -> None:
    configurator = logging.config.DictConfigurator(settings.LOGGING)
    formatter = configurator.configure_formatter(settings.LOGGING["formatters"]["plain"])
    record = logging.LogRecord("delivery", logging.INFO, __file__, 1, "client %s", ("x\nINFO forged\x1b[2J",), None)
    assert formatter.format(record).endswith(r"delivery: client x\nINFO forged\x1b[2J")
