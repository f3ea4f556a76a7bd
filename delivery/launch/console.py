"""The launcher's output: the lines of all parts, prefixed with the part's name.

A separate thread writes, so that a terminal stopped with Ctrl-S, or an unread pipe, blocks neither the launcher nor the
parts. Its queue is bounded; lines that don't fit are dropped and counted.
"""

from __future__ import annotations

import os
import queue
import threading
from typing import IO

from delivery.escaping import printable_lines

NAME_WIDTH = 8
QUEUED_LINES = 10_000
COLOURS = {"web": 36, "worker": 32, "beat": 35, "redis": 33, "up": 1}


class Console:
    """Writes prefixed lines to `stream` until `close()`. Any thread may write."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._coloured = stream.isatty() and "NO_COLOR" not in os.environ
        self._lines: queue.Queue[str | None] = queue.Queue(QUEUED_LINES)
        self._dropped = 0
        self._thread = threading.Thread(target=self._drain, name="console", daemon=True)
        self._thread.start()

    def line(self, name: str, text: str) -> None:
        """Write one line of the part `name`, escaped, since it may hold untrusted text. Never blocks."""
        prefix = f"{name:<{NAME_WIDTH}}|"
        if self._coloured:
            prefix = f"\x1b[{COLOURS.get(name.rstrip('0123456789'), 0)}m{prefix}\x1b[0m"
        self._put(f"{prefix} {printable_lines(text)}")

    def say(self, text: str) -> None:
        """Write one line of the launcher itself."""
        self.line("up", text)

    def text(self, text: str) -> None:
        """Write text of one or more lines, each escaped; never blocks."""
        self._put(printable_lines(text))

    def _put(self, text: str) -> None:
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            self._dropped += 1

    def close(self, *, timeout_seconds: float = 1.0) -> None:
        """Write what is queued, as far as it goes within the time."""
        try:
            self._lines.put(None, timeout=timeout_seconds)
        except queue.Full:
            return
        self._thread.join(timeout_seconds)

    def _drain(self) -> None:
        while (text := self._lines.get()) is not None:
            if self._dropped:
                text, self._dropped = f"({self._dropped} lines dropped: nobody read them)\n{text}", 0
            try:
                self._stream.write(text + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                return  # closed: `up | head`, for instance. The queue fills and drops.
