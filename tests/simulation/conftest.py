"""A database in memory for the simulation: migrated once, emptied for each seed.

One connection for everything: asgiref would give each task its own, and with it an empty database.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections

#: Whatever DATABASE_URL says.
IN_MEMORY = {
    "ENGINE": "django.db.backends.sqlite3",
    "NAME": ":memory:",
    "OPTIONS": {"transaction_mode": "IMMEDIATE"},
    "CONN_HEALTH_CHECKS": False,
}


@pytest.fixture(scope="module")
def rows(django_db_blocker: Any) -> Iterator[None]:
    """Have this process's Django work on an empty database in memory."""
    options = connections.settings["default"]
    before, level = dict(options), logging.root.manager.disable
    connections.close_all()
    per_context = connections._connections
    connections._connections = SimpleNamespace()  # type: ignore[assignment]
    options.update(IN_MEMORY)
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"  # threads are steps of the one loop here
    logging.disable(logging.CRITICAL)
    try:
        with django_db_blocker.unblock():
            call_command("migrate", verbosity=0)
            yield
    finally:
        logging.disable(level)
        del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]
        connection = connections["default"].connection
        if connection is not None:
            connection.close()  # Django keeps one that is in memory
        options.clear()
        options.update(before)
        connections._connections = per_context
