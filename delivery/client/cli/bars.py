"""Progress bars on stderr, drawn by rich; where stderr is no terminal, lines alone.

The only module that needs rich: `main` imports it for a command that shows bars.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import rich.progress
from rich.console import Console
from rich.table import Column
from rich.text import Text

from delivery.client.cli.reporting import Pipe, Report
from delivery.client.cli.wording import sentence, size_text
from delivery.client.progress import Progress
from delivery.escaping import printable

WIDE_COLUMNS, NARROW_COLUMNS = 110, 70  # of terminals with room for a long bar, and with none for a bar
REDRAW_SECONDS = 0.1  # rich computes the speed from its samples: more of them cost time and say nothing new


class _Console(Console):
    """Goes silent where the reader of a pipe has gone; rich would end the process."""

    def __init__(self, on_broken_pipe: Callable[[], None]) -> None:
        super().__init__(stderr=True, highlight=False)
        self._tell = on_broken_pipe

    def on_broken_pipe(self) -> None:
        self.quiet = True
        self._tell()


class _Done(rich.progress.ProgressColumn):
    """What is stored, of how much; in a narrow terminal as a percentage where that is known."""

    def __init__(self, *, narrow: bool) -> None:
        super().__init__(Column(no_wrap=True))
        self._narrow = narrow

    def render(self, task: rich.progress.Task) -> Text:
        text = size_text(task.completed)
        if task.total is not None:
            text = f"{task.percentage:.0f}%" if self._narrow else f"{text} of {size_text(task.total)}"
        return Text(text, style="progress.download")


class _Speed(rich.progress.ProgressColumn):
    def __init__(self) -> None:
        super().__init__(Column(no_wrap=True))

    def render(self, task: rich.progress.Task) -> Text:
        speed = task.finished_speed or task.speed
        text = "" if speed is None else f"{size_text(speed)}/s"
        return Text(text, style="progress.data.speed")


class Bars:
    """One bar for each transfer. `start()`, then `stop()`. Not for several threads."""

    def __init__(self, *, on_broken_pipe: Callable[[], None]) -> None:
        self._console = _Console(on_broken_pipe)
        wide, narrow = self._console.width >= WIDE_COLUMNS, self._console.width < NARROW_COLUMNS
        name = Column(ratio=None if wide else 1, no_wrap=True, overflow="ellipsis")
        self._bars = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False, table_column=name),
            *([] if narrow else [rich.progress.BarColumn(bar_width=40 if wide else 10)]),
            _Done(narrow=narrow),
            _Speed(),
            rich.progress.TimeRemainingColumn(compact=not wide),
            console=self._console,
            disable=not self._console.is_terminal,
            expand=not wide,
        )
        self._tasks: dict[str, rich.progress.TaskID] = {}
        self._drawn: dict[str, float] = {}

    def start(self) -> None:
        self._bars.start()

    def stop(self) -> None:
        self._bars.stop()

    def line(self, text: str, *, wrong: bool = False) -> None:
        """Write a line above the bars."""
        self._console.print(text, markup=False, emoji=False, soft_wrap=True, style="red" if wrong else None)

    def update(self, transfer: str, label: str, stored: int, size: int | None) -> None:
        """Draw how many bytes of a transfer are stored."""
        task = self._tasks.get(transfer)
        if task is None:
            task = self._tasks[transfer] = self._bars.add_task(label, total=size)
        now = time.monotonic()
        if stored == size or now - self._drawn.get(transfer, 0.0) >= REDRAW_SECONDS:
            self._drawn[transfer] = now
            self._bars.update(task, completed=stored, total=size)

    def remove(self, transfer: str) -> None:
        """Take away the bar of a transfer that has ended: a line says how."""
        if (task := self._tasks.pop(transfer, None)) is not None:
            self._bars.remove_task(task)


class BarReport:
    """A bar for each transfer with speed and time left, and a line for everything that happens beside it."""

    def __init__(self) -> None:
        self._pipe = Pipe(sys.stderr)
        self._bars = Bars(on_broken_pipe=self._pipe.lost)
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
