"""One part of the stack: started, its lines passed on, started again when it ends, stopped when told."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from delivery.launch import identity
from delivery.launch.console import Console
from delivery.launch.state import Kind, Ledger

BACKOFF_FIRST_SECONDS = 0.2
BACKOFF_MAX_SECONDS = 5.0
#: A part that lived this long starts over with the first step.
BACKOFF_RESET_SECONDS = 10.0
LINE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Part:
    """What to run. `grace_seconds` lie between SIGTERM and SIGKILL; a line with `ready_words` says that it works."""

    name: str
    kind: Kind
    command: tuple[str, ...]
    environment: Mapping[str, str]
    grace_seconds: float
    ready_words: str | None = None


class Keeper:
    """Keeps one part running. `start()`, then `stop()`, both on the launcher's loop."""

    def __init__(self, part: Part, ledger: Ledger, console: Console) -> None:
        self.part = part
        self.ready = asyncio.Event()
        """Set once the part has said its `ready_words`; at once where it has none."""
        if part.ready_words is None:
            self.ready.set()
        self._ledger = ledger
        self._console = console
        self._stopping = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the part; from now on a task of this object owns it."""
        self._task = asyncio.create_task(self._keep(), name=self.part.name)

    async def stop(self, hurry: asyncio.Event) -> None:
        """End the part: SIGTERM, and SIGKILL after its grace or when `hurry` is set. Returns when it is gone."""
        self._stopping.set()
        if self._task is None:
            return
        if self._process is not None:
            identity.send(self._process.pid, signal.SIGTERM)
        hurried = asyncio.create_task(hurry.wait())
        await asyncio.wait({self._task, hurried}, timeout=self.part.grace_seconds, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not self._task.done() and self._process is not None:
            self._console.say(f"{self.part.name} does not end; killing it")
            identity.send_group(self._process.pid, signal.SIGKILL)
        await self._task

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        delay = BACKOFF_FIRST_SECONDS
        while not self._stopping.is_set():
            began = loop.time()
            ending = await self._run_once()
            if self._stopping.is_set():
                return
            if loop.time() - began >= BACKOFF_RESET_SECONDS:
                delay = BACKOFF_FIRST_SECONDS
            self._console.say(f"{self.part.name} ended ({ending}); starting it again in {delay:.1f} s")
            try:
                await asyncio.wait_for(self._stopping.wait(), delay)
            except TimeoutError:
                delay = min(2 * delay, BACKOFF_MAX_SECONDS)

    async def _run_once(self) -> str:
        """Run the part to its end and return in words how it ended."""
        # A pipe of our own: with asyncio's, wait() would also wait for every grandchild that still holds the pipe.
        read_end, write_end = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.part.command,
                env=self.part.environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                start_new_session=True,  # Ctrl-C is for the launcher, which stops the parts in order
            )
        except OSError as error:
            os.close(read_end)
            return str(error)
        finally:
            os.close(write_end)
        process = self._process
        self._record(lambda: self._ledger.add(self.part.name, self.part.kind, process.pid))
        lines = asyncio.create_task(self._pass_on_lines(read_end))
        if self._stopping.is_set():  # told to stop while it was being started
            identity.send(process.pid, signal.SIGTERM)
        status = await process.wait()
        self._process = None
        self._record(lambda: self._ledger.remove(process.pid))
        identity.send_group(process.pid, signal.SIGKILL)  # what a killed leader left: Celery's pool
        await asyncio.wait({lines}, timeout=1.0)
        lines.cancel()
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"

    def _record(self, change: Callable[[], None]) -> None:
        try:
            change()
        except OSError as error:  # a full disk: no reason to let go of the process
            self._console.say(f"cannot record the processes: {error}")

    async def _pass_on_lines(self, read_end: int) -> None:
        reader = asyncio.StreamReader(limit=LINE_BYTES)
        with os.fdopen(read_end, "rb", buffering=0) as pipe:
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), pipe
            )
            try:
                while line := await _read_line(reader):
                    self._take_line(line.decode(errors="replace").rstrip())
            finally:
                transport.close()

    def _take_line(self, line: str) -> None:
        self._console.line(self.part.name, line)
        if self.part.ready_words is not None and self.part.ready_words in line:
            self.ready.set()


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    """Return the next line, or as much of it as the reader's limit allows; empty at the end."""
    try:
        return await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError as error:
        return await reader.read(error.consumed or LINE_BYTES)
