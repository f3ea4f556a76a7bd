"""Text of strangers on its way to a terminal or a log: what could drive a terminal or forge a line is escaped.

Names, addresses, client ids, close reasons, messages of the other side and the texts of exceptions are all chosen by
somebody else. Whatever writes a line for people passes it through `printable` once, as the last step.
"""

from __future__ import annotations

import logging
import unicodedata


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
