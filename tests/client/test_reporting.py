"""What people read: one unit, one line an event, and no word of a stranger that does anything."""

from __future__ import annotations

import io
import os
import re
from typing import Any

import pytest

from delivery.client.cli import bars
from delivery.client.cli.bars import BarReport
from delivery.client.cli.reporting import Pipe
from delivery.client.cli.wording import sentence, size_text
from delivery.client.progress import Progress

EVIL = "\x1b]0;owned\x07\x9b31m\u202e\r\nforged"
SHOWN = r"\x1b]0;owned\x07\x9b31m\u202e\r\nforged"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1_048_575, "1.0 MiB"),
        (8 * 1_048_576 + 12_345, "8.0 MiB"),
        (1_047_000_000_000, "975.1 GiB"),
        (2.0**60, "1024.0 PiB"),
    ],
)
def test_a_size_has_one_unit(size: float, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("name", "details"),
    [
        ("closed", {"code": 4400, "reason": EVIL, "wait": None}),
        ("refused", {"url": "ws://host/", "error": EVIL, "wait": 1.0}),
        ("waiting", {"code": EVIL, "wait": 1.0}),
        ("done", {"name": EVIL, "size": 1, "sha256": "00", "path": "x"}),
        ("done", {"name": "x", "size": 1, "sha256": "00", "path": EVIL}),
        ("failed", {"name": EVIL, "error": "x"}),
        ("failed", {"error": EVIL}),
        ("unknown", {"reason": EVIL}),
    ],
)
def test_no_word_of_a_stranger_drives_the_terminal(name: str, details: dict[str, Any]) -> None:
    line = sentence(name, details)
    assert line.isprintable()
    assert SHOWN in line.replace("\\\\", "\\")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("columns", "done"), [(30, "100%"), (60, "100%"), (80, "8.0 MiB of 8.0 MiB"), (120, "8.0 MiB of 8.0 MiB")]
)
def test_a_bar_shows_name_and_progress_in_any_width(columns: int, done: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(bars, "REDRAW_SECONDS", 0.0)
    with BarReport() as report:
        for stored in range(9):
            report.progress(f"scan[bold]{EVIL}", Progress("1", stored * 1_048_576, 0, 8 * 1_048_576))
    text = terminal.getvalue()
    assert "scan[bold" in text
    assert done in text
    assert not any(evil in text for evil in ("\x1b]0", "\x9b", "\u202e", "MB"))
    assert all(len(line) <= columns for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).splitlines())


def test_a_bar_goes_when_its_transfer_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with BarReport() as report:
        report.progress("one.tif", Progress("1", 5, 5, 5))
        report.progress("two.tif", Progress("2", 1, 1, 5))
        report.event("done", {"transfer": "1", "name": "one.tif", "size": 5, "sha256": "00"})
        terminal.truncate(0)
    assert "two.tif" in terminal.getvalue()
    assert "one.tif" not in terminal.getvalue()


def test_a_reader_that_goes_is_noticed_without_writing() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as stream:
        pipe = Pipe(stream)
        pipe.write("hello\n")
        assert not pipe.unread()
        os.close(read_end)
        assert pipe.unread()
        pipe.write("nobody reads this")
        pipe.write("nor this")
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # for the flush on closing


def test_a_file_is_always_read() -> None:
    assert not Pipe(io.StringIO()).unread()
