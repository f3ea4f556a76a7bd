"""Nothing that a stranger wrote drives a terminal or begins a line of a log."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import delivery
from delivery.escaping import PrintableFormatter, printable, printable_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("scan.tif", "scan.tif"),
        ("Zoë 日本語　資料.pdf", "Zoë 日本語　資料.pdf"),  # with an ideographic space
        ("Screenshot 10.15.23\u202fAM.png", "Screenshot 10.15.23\u202fAM.png"),
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("\x9b31mred", r"\x9b31mred"),  # CSI in one character
        ("a\r\nINFO forged", r"a\r\nINFO forged"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("\u2066x\u2069", r"\u2066x\u2069"),
        ("a\u2028b\u2029c\x7f", r"a\u2028b\u2029c\x7f"),
        ("\udcff\ud800", r"\udcff\ud800"),
        ("\U000e0041", r"\U000e0041"),  # a tag: invisible
        ("\0", r"\x00"),
    ],
)
def test_what_could_drive_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_lines_that_are_meant_stay() -> None:
    assert printable_lines("one\n\ttwo\x1b[2J\n") == "one\n\ttwo\\x1b[2J\n"


def test_a_log_line_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("tests.escaping")
    logger.propagate = False
    logger.handlers = [handler]
    logger.warning("client %s", "x\nERROR forged\x1b[1m")
    try:
        raise ValueError("of the peer\x1b[2J")
    except ValueError:
        logger.exception("failed")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == r"WARNING client x\nERROR forged\x1b[1m"
    assert lines[1:3] == ["ERROR failed", "Traceback (most recent call last):"]
    assert lines[-1] == r"ValueError: of the peer\x1b[2J"


# -- the app's own loggers ---------------------------------------------------------------------------------------------

FORGED = "laptop\n2026-01-01 INFO all is well\x1b[2J"


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """Return what a site's own, plain formatter makes of the records."""
    return "\n".join(logging.Formatter("%(levelname)s %(message)s").format(record) for record in caplog.records)


def test_every_logger_of_the_app_escapes_its_arguments_whatever_the_sites_formatter(
    caplog: pytest.LogCaptureFixture,
) -> None:
    package = Path(delivery.__file__).parent
    names = {
        ".".join(("delivery", *path.relative_to(package).with_suffix("").parts))
        for path in package.rglob("*.py")
        if "logging.getLogger(__name__)" in path.read_text()
    }
    assert len(names) > 20
    for name in names:
        caplog.clear()
        logging.getLogger(name).warning("connection of %s: %r %d %s", FORGED, FORGED, 7, LookupError(FORGED))
        assert len(logged(caplog).splitlines()) == 1, name
        assert "\x1b" not in logged(caplog)


def test_lines_of_a_traceback_look_like_no_record(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise LookupError(FORGED)
    except LookupError:
        logging.getLogger("delivery.server.connection").exception("connection of %s fails", FORGED)
    first, *rest = logged(caplog).splitlines()
    assert first.startswith("ERROR connection of laptop")
    assert all(line.startswith("  ") for line in rest)
    assert "\x1b" not in logged(caplog)


def test_numbers_and_mappings_are_formatted_as_ever(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("delivery.server.web_process")
    logger.warning("%d of %.1f, %05d", 3, 2.25, 7)
    logger.warning("%(who)s", {"who": FORGED})
    assert [record.getMessage() for record in caplog.records] == [
        "3 of 2.2, 00007",
        r"laptop\n2026-01-01 INFO all is well\x1b[2J",
    ]
