"""What the command line shows: a progress bar for people, JSON lines for scripts, or nothing but errors.

People read stderr, so that stdout stays free: there go the paths of what was received, and everything with `--json`.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Protocol

from delivery.client.uploads import Progress
from delivery.protocol.codes import CLOSE_CODES

PROGRESS_SECONDS = 0.25


class Report(Protocol):
    def __enter__(self) -> Report: ...
    def __exit__(self, *error: object) -> None: ...
    def event(self, name: str, details: dict[str, Any]) -> None:
        """Show what happened to the connection or a transfer."""

    def progress(self, label: str, progress: Progress) -> None:
        """Show how far a transfer is."""


class JsonReport:
    """One JSON object a line on stdout; progress at most four times a second for each transfer."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def event(self, name: str, details: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps({"event": name, **details}, default=str) + "\n")
        sys.stdout.flush()

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


class QuietReport:
    """Errors only, on stderr."""

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def event(self, name: str, details: dict[str, Any]) -> None:
        if name == "failed":
            sys.stderr.write(f"{sentence(name, details)}\n")

    def progress(self, label: str, progress: Progress) -> None:
        pass


class BarReport:
    """A bar for each transfer with speed and time left, and a line for everything that happens beside it."""

    def __init__(self) -> None:
        # Here and not above: who uses the client as a library needs no progress bars.
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import (
            Progress as Bars,
        )

        self._console = Console(stderr=True, highlight=False)
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, Any] = {}
        self._shown: dict[str, float] = {}

    def __enter__(self) -> Report:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def event(self, name: str, details: dict[str, Any]) -> None:
        if name in ("connected", "summary"):
            return
        self._console.print(
            sentence(name, details), markup=False, soft_wrap=True, style="red" if name == "failed" else None
        )

    def progress(self, label: str, progress: Progress) -> None:
        task = self._tasks.get(progress.transfer)
        if task is None:
            task = self._tasks[progress.transfer] = self._bars.add_task(printable(label), total=progress.size)
        now = time.monotonic()
        # Rich computes the speed from its samples: more of them cost time and say nothing new.
        if progress.stored == progress.size or now - self._shown.get(progress.transfer, 0.0) >= 0.1:
            self._shown[progress.transfer] = now
            self._bars.update(task, completed=progress.stored, total=progress.size)


def printable(text: str) -> str:
    """Return `text` without what could drive a terminal: a stranger chose it."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def sentence(name: str, details: dict[str, Any]) -> str:
    """Return one line of English about an event."""
    match name:
        case "closed":
            code = details["code"]
            meaning = details["reason"] or (CLOSE_CODES[code].reason if code in CLOSE_CODES else "closed")
            again = "" if details["wait"] is None else f"; connecting again in {details['wait']:.1f} s"
            return f"connection closed: {code} {meaning}{again}"
        case "refused":
            return f"cannot connect: {details['error']}; trying again in {details['wait']:.1f} s"
        case "resumed":
            return f"resumed at {details['offset']:,} bytes"
        case "waiting":
            return f"the server says {details['code']}; offered again in {details['wait']:.1f} s"
        case "done":
            where = f" -> {details['path']}" if details.get("path") else ""
            return f"done: {printable(details['name'])}{where}  {details['size']:,} bytes  sha256 {details['sha256']}"
        case "failed":
            return (
                f"failed: {printable(details.get('name') or '')}{': ' if details.get('name') else ''}{details['error']}"
            )
    return f"{name}: {details}"


def report_for(*, as_json: bool, quiet: bool) -> Report:
    if as_json:
        return JsonReport()
    return QuietReport() if quiet else BarReport()
