"""The command line client, `python -m delivery.client`, as a process of its own: started, listened to, killed, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rig.environment import ROOT, own_environment
from rig.processes import to_the_end

END_SECONDS = 5.0
LINE_BYTES = 1_048_576
Event = dict[str, Any]


class ClientProcess:
    """One client, which may be started again once it has ended. `observer` is called with each event that it tells."""

    def __init__(self, observer: Callable[[Event], None] = lambda event: None) -> None:
        self.connected = asyncio.Event()
        """Set once it was welcomed, or has ended without."""
        self.done: Event | None = None
        """What it tells of the payload that it moved last, once it has."""
        self.summary: Event = {}
        self.status: int | None = None
        self.complaints: deque[str] = deque(maxlen=20)
        """Its last lines on standard error, and those on standard output that are no JSON."""
        self._observer = observer
        self._process: asyncio.subprocess.Process | None = None
        self._listening: list[asyncio.Task[None]] = []

    async def start(self, *arguments: str, url: str, token: str, home: Path) -> None:
        """Run the command with `arguments` for the server at `url`. What it remembers is in `home`."""
        self.status = None
        # The token where no `ps` shows it; the state where it goes with the rest of the run.
        environment = own_environment(DELIVERY_URL=url, DELIVERY_TOKEN=token, XDG_STATE_HOME=str(home))
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "delivery.client", *arguments, "--json"),
            cwd=ROOT,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
            start_new_session=True,
        )
        if process.stdout is not None and process.stderr is not None:
            events, complaints = self._hear_events(process.stdout), self._hear_complaints(process.stderr)
            self._listening = [asyncio.create_task(events), asyncio.create_task(complaints)]

    async def wait(self) -> int:
        """Wait until it has ended and everything that it said was heard; return its exit status."""
        if self._process is None:
            raise RuntimeError("the client was not started")
        await asyncio.gather(*self._listening)
        self.status = await self._process.wait()
        return self.status

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; one that has ended already is fine."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL it, and wait until it is gone and everything that it said was heard."""
        self.send(signal.SIGKILL)
        await self.wait()

    async def end(self) -> None:
        """End it: told by SIGTERM, then killed. Goes on to the end where it is cancelled."""
        await to_the_end(self._end())
        for task in self._listening:
            task.cancel()

    async def _end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process is None or self._process.returncode is not None:
                return
            self.send(number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await self._process.wait()

    async def _hear_events(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            try:
                event = json.loads(line)
            except ValueError:
                self.complaints.append(line.decode(errors="replace").rstrip())
                continue
            match event.get("event"):
                case "connected":
                    self.connected.set()
                case "done":
                    self.done = event
                case "summary":
                    self.summary = event
            self._observer(event)
        self.connected.set()  # nobody is to wait for it any longer

    async def _hear_complaints(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            self.complaints.append(line.decode(errors="replace").rstrip())
