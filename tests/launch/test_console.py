"""The launcher's output holds nobody up."""

from __future__ import annotations

import io
import threading

import pytest

from delivery.launch import console as console_module
from delivery.launch.console import Console


class Blocked(io.StringIO):
    """A terminal that was stopped: writing waits until it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        assert self.go_on.wait(10)
        return super().write(text)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_that_nobody_reads_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "QUEUED_LINES", 2)
    stream = Blocked()
    console = Console(stream)
    console.text("being written")
    assert stream.reached.wait(10)
    for number in range(5):
        console.text(str(number))
    stream.go_on.set()
    console.close(timeout_seconds=10)
    assert stream.getvalue() == "being written\n(3 lines dropped: nobody read them)\n0\n1\n"


def test_closing_does_not_wait_for_a_terminal_that_was_stopped() -> None:
    stream = Blocked()
    console = Console(stream)
    console.text("never shown")
    console.close(timeout_seconds=0.05)
    stream.go_on.set()


def test_nothing_that_a_part_writes_drives_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    console = Console(stream)
    console.line("web", "client \x1b]0;owned\x07 \u202egnp\tx")
    console.text("\n  var\x1b[2J\n  admin")
    console.close()
    assert stream.getvalue() == (
        "\x1b[36mweb     |\x1b[0m client \\x1b]0;owned\\x07 \\u202egnp\tx\n\n  var\\x1b[2J\n  admin\n"
    )


def test_closed_pipe_is_no_error() -> None:
    stream = io.StringIO()
    stream.close = lambda: None  # type: ignore[method-assign]
    console = Console(stream)
    io.StringIO.close(stream)
    console.say("hello")
    console.close()


@pytest.mark.parametrize(("no_color", "expected"), [(None, "\x1b[32mworker1 |\x1b[0m hi\n"), ("1", "worker1 | hi\n")])
def test_colours_only_where_they_are_wanted(
    monkeypatch: pytest.MonkeyPatch, no_color: str | None, expected: str
) -> None:
    if no_color is None:
        monkeypatch.delenv("NO_COLOR", raising=False)
    else:
        monkeypatch.setenv("NO_COLOR", no_color)
    stream = Terminal()
    console = Console(stream)
    console.line("worker1", "hi")
    console.close()
    assert stream.getvalue() == expected
