"""What the command line shows: JSON lines for scripts, or errors alone; `bars` shows progress to people.

People read stderr, so that stdout stays free; with `--json` everything goes to stdout.
"""

from __future__ import annotations

import json
import os
import select
import stat
import sys
import time
from typing import IO, Any, Protocol

from delivery.client.cli.wording import sentence
from delivery.client.progress import Progress

PROGRESS_SECONDS = 0.25


class Report(Protocol):
    """Where a command shows what happens; entered while it runs."""

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
