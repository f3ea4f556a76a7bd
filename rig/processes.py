"""Processes: one with a log of its own, in a session of its own; and what /proc says of others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from rig.environment import ROOT
from rig.waiting import slowed, until, wait_until

READY_SECONDS = 30.0
STOP_SECONDS = 30.0


class Failed(Exception):
    """A process ended while it was needed; the message has the end of its log."""


class Process:
    """A command that writes to the file `log`. `with` stops it."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        environment: Mapping[str, str],
        cwd: Path = ROOT,
        name: str = "process",
    ) -> None:
        self.name = name
        self.log_path = log
        with log.open("wb") as output:
            self.popen = subprocess.Popen(
                [str(word) for word in command],
                cwd=cwd,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def log(self) -> str:
        """Return everything that it has said."""
        return self.log_path.read_text(errors="replace")

    # -- waiting -----------------------------------------------------------------------------------------------------

    def says(self, words: str, *, seconds: float = READY_SECONDS) -> None:
        """Wait until its log has `words`. Raises Failed where it ends before, TimeoutError after the time."""
        wait_until(lambda: self._has_said(words), what=f"{words!r} of {self.name}", seconds=seconds)

    async def until_says(self, words: str, *, seconds: float = READY_SECONDS) -> None:
        """As `says`, for coroutines."""
        await until(lambda: self._has_said(words), what=f"{words!r} of {self.name}", seconds=seconds)

    def _has_said(self, words: str) -> bool:
        if not self.running:
            raise Failed(f"{self.name} ended with status {self.popen.returncode}: {self.log()[-3000:]}")
        return words in self.log()

    async def ends(self, *, within: float) -> tuple[int, float]:
        """Wait for its end; return its exit status and how long that took, in seconds."""
        began = time.monotonic()
        await until(lambda: not self.running, what=f"end of {self.name}", seconds=within)
        return self.popen.wait(), time.monotonic() - began

    # -- ending ------------------------------------------------------------------------------------------------------

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL it and what it has started in its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait()

    def stop(self, *signals: signal.Signals, seconds: float = STOP_SECONDS) -> int:
        """Send the signals (SIGTERM) one after the other, each with its time, then SIGKILL. Returns the exit status."""
        for number in signals or (signal.SIGTERM,):
            if self.running:
                self.send(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.popen.wait(slowed(seconds))
        if self.running:
            self.kill()
        return self.popen.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


# -- other processes -------------------------------------------------------------------------------------------------


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal; a process that has gone already is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_group(pid: int) -> None:
    """SIGKILL a process and what is in its group; one that has gone already is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Return whether the process runs; one that only waits for its parent to look does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return state.stdout.strip() != "" and not state.stdout.startswith("Z")


def children_of(pid: int) -> list[int]:
    """Return the live children of a process."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]


async def to_the_end(work: Coroutine[Any, Any, Any]) -> None:
    """Await `work` even where whoever awaits it is cancelled; the cancellation is raised afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.done():
                raise
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()
