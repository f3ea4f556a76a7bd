"""What the command line shows: a progress bar for people, JSON lines for scripts, or nothing but errors.

People read stderr, so that stdout stays free; with `--json` everything goes to stdout. All that people read is escaped
here, in `sentence` and for the bars: names, addresses, reasons and messages are chosen by strangers.
"""

from __future__ import annotations

import json
import os
import select
import stat
import sys
import time
from typing import IO, TYPE_CHECKING, Any, Protocol

from delivery.escaping import printable
from delivery.protocol.codes import ABORT_CODES, CLOSE_CODES, REJECT_CODES

if TYPE_CHECKING:
    from delivery.client.uploads import Progress

PROGRESS_SECONDS = 0.25
_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")


class Report(Protocol):
    def __enter__(self) -> Report: ...
    def __exit__(self, *error: object) -> None: ...
    def event(self, name: str, details: dict[str, Any]) -> None:
        """Show what happened to the connection or a transfer."""

    def say(self, text: str) -> None:
        """Show a line that is for people alone."""

    def progress(self, label: str, progress: Progress) -> None:
        """Show how far a transfer is."""

    def unread(self) -> bool:
        """Return whether whoever read this has gone, as `head` does."""


class JsonReport:
    """One JSON object a line on stdout; progress at most four times a second for each transfer."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}
        self._pipe = Pipe(sys.stdout)

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def event(self, name: str, details: dict[str, Any]) -> None:
        self._pipe.write(json.dumps({"event": name, **details}, default=str) + "\n")

    def say(self, text: str) -> None:
        pass

    def progress(self, label: str, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._said.get(progress.transfer, 0.0) >= PROGRESS_SECONDS:
            self._said[progress.transfer] = now
            self.event(
                "progress",
                {
                    "transfer": progress.transfer,
                    "name": label,
                    "stored": progress.stored,
                    "received": progress.received,
                    "size": progress.size,
                },
            )

    def unread(self) -> bool:
        return self._pipe.unread()


class QuietReport:
    """Errors only, on stderr."""

    def __init__(self) -> None:
        self._pipe = Pipe(sys.stderr)

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def event(self, name: str, details: dict[str, Any]) -> None:
        if name == "failed":
            self._pipe.write(f"{sentence(name, details)}\n")

    def say(self, text: str) -> None:
        pass

    def progress(self, label: str, progress: Progress) -> None:
        pass

    def unread(self) -> bool:
        return False  # errors that nobody reads are no reason to stop


class BarReport:
    """A bar for each transfer with speed and time left, and a line for everything that happens beside it."""

    def __init__(self) -> None:
        from delivery.client import bars  # here: who uses the client as a library needs no progress bars

        self._pipe = Pipe(sys.stderr)
        self._bars = bars.Bars(on_broken_pipe=self._pipe.lost)
        self._connections = 0

    def __enter__(self) -> Report:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def event(self, name: str, details: dict[str, Any]) -> None:
        if name == "connected":
            self._connections += 1
            if self._connections > 1:
                self.say("connected again")
            return
        if name == "summary" or (name == "closed" and details["wait"] is None):
            return  # closed for good: the failure that follows says why, and what to do
        if name in ("done", "failed"):
            self._bars.remove(details.get("transfer", ""))
        self._bars.line(sentence(name, details), wrong=name == "failed")

    def say(self, text: str) -> None:
        self._bars.line(printable(text))

    def progress(self, label: str, progress: Progress) -> None:
        self._bars.update(progress.transfer, printable(label), progress.stored, progress.size)

    def unread(self) -> bool:
        return self._pipe.unread()


class Pipe:
    """A stream whose reader may go, as `head` does after ten lines: writing to it then is no error."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lost = False
        self._poll = _polled(stream)

    def write(self, text: str) -> None:
        """Write `text` at once."""
        if self._lost:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (BrokenPipeError, ValueError):  # ValueError: closed
            self.lost()

    def lost(self) -> None:
        """Note that the reader has gone."""
        self._lost = True

    def unread(self) -> bool:
        """Return whether the reader has gone. Looked at often: a command that waits writes nothing that could fail."""
        return self._lost or bool(self._poll and self._poll.poll(0))


def _polled(stream: IO[str]) -> Any:
    """Return what polls `stream` for nothing but errors; None where it is no pipe, or the platform has no `poll`."""
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError):
        return None
    if not hasattr(select, "poll") or not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return None
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return poll


def size_text(size: float) -> str:
    """Return a number of bytes for people: `812 bytes`, `8.0 MiB`."""
    if size < 1024:
        return f"{size:.0f} byte{'' if round(size) == 1 else 's'}"
    for unit in _UNITS:
        size /= 1024
        if size < 1023.95 or unit == _UNITS[-1]:
            break
    return f"{size:.1f} {unit}"


def sentence(name: str, details: dict[str, Any]) -> str:
    """Return one line of English about an event, escaped."""
    return printable(_sentence(name, details))


def _sentence(name: str, details: dict[str, Any]) -> str:
    match name:
        case "closed":
            code = details["code"]
            meaning = details["reason"] or (CLOSE_CODES[code].reason if code in CLOSE_CODES else "closed")
            return f"connection closed: {code} {meaning}{_again('connecting again', details)}"
        case "refused":
            return f"cannot connect to {details['url']}: {details['error']}{_again('trying again', details)}"
        case "resumed":
            return f"resumed at {size_text(details['offset'])}"
        case "waiting":
            known = REJECT_CODES.get(details["code"]) or ABORT_CODES.get(details["code"])
            meaning = f"{details['code']}: {known.text}" if known else details["code"]
            return f"the server says {meaning}{_again('offered again', details)}"
        case "done":
            where = f" -> {details['path']}" if details.get("path") else ""
            return f"done: {details['name']}{where}  {size_text(details['size'])}  sha256 {details['sha256']}"
        case "failed":
            return f"failed: {details['name'] + ': ' if details.get('name') else ''}{details['error']}"
    return f"{name}: {details}"


def _again(what: str, details: dict[str, Any]) -> str:
    return "" if details["wait"] is None else f"; {what} in {details['wait']:.1f} s"


def report_for(*, as_json: bool, quiet: bool) -> Report:
    if as_json:
        return JsonReport()
    return QuietReport() if quiet else BarReport()
