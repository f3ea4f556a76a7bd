"""Text of strangers on its way to a terminal or a log: what could drive a terminal or forge a line is escaped.

Names, addresses, client ids, close reasons, messages of the other side and the texts of exceptions are all chosen by
somebody else. Whatever writes a line for people passes it through `printable` once, as the last step.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def printable(text: str) -> str:
    r"""Return `text` with its control, format and unassigned characters and lone surrogates as `\x1b` or `\u202e`.

    One line stays one line: line feeds are escaped too. Format characters include those that turn text around
    (Unicode Standard Annex 9). Spaces of any kind stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(character if _harmless(character) else _escaped(character) for character in text)


def _harmless(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def printable_lines(text: str) -> str:
    """Return `text` with each of its lines made printable; line feeds and tabs stay."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


class PrintableFormatter(logging.Formatter):
    """Formats log records as `logging.Formatter` does, escaped; a record with a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


class PrintableFilter(logging.Filter):
    """Escapes what is put into the messages of a logger, however the site formats its log.

    A traceback keeps its lines, each indented, so that none of them looks like another record.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, Mapping):
            record.args = {name: _harmless_argument(value) for name, value in record.args.items()}
        elif record.args:
            record.args = tuple(_harmless_argument(value) for value in record.args)
        if record.exc_info and not record.exc_text:
            text = logging.Formatter().formatException(record.exc_info)
            record.exc_text = "  " + printable_lines(text).replace("\n", "\n  ")
        return True


def _harmless_argument(value: Any) -> Any:
    return value if isinstance(value, int | float) else _Printable(value)


class _Printable:
    """An argument of a log message that is escaped when it is written."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __str__(self) -> str:
        return printable(str(self._value))

    def __repr__(self) -> str:
        return printable(repr(self._value))


_filter = PrintableFilter()


def guard_loggers(package: str) -> None:
    """Give the logger of each module of `package` a `PrintableFilter`. May be called again.

    A filter of a parent's logger does not see its children's records, hence one for each; and a site's own formatter need
    not know of any of this.
    """
    folder = Path(__file__).parent
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).with_suffix("").parts
        name = ".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))
        logging.getLogger(name).addFilter(_filter)
