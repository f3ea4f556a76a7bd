"""The command-line client, `python -m delivery.client`, as a process of its own: started, listened to, ended."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from demo.ending import end_process, to_the_end
from demo.stack import ROOT, own_environment

END_SECONDS = 5.0
LINE_BYTES = 1_048_576
Observer = Callable[[dict[str, Any]], None]


class ClientProcess:
    """One client. `observer` is called with each event that it tells. One use: `running`, and `wait` inside of it."""

    def __init__(self, observer: Observer) -> None:
        self.connected = asyncio.Event()
        """Set once it was welcomed, or has ended without."""
        self.done: dict[str, Any] | None = None
        """What it tells of the payload that it moved, once it has."""
        self.summary: dict[str, Any] = {}
        self.status: int | None = None
        self.complaints: deque[str] = deque(maxlen=20)
        """Its last lines on standard error."""
        self._observer = observer
        self._process: asyncio.subprocess.Process | None = None
        self._listening: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def running(self, arguments: tuple[str, ...], *, port: int, token: str, home: Path) -> AsyncIterator[None]:
        """Run the command with `arguments`, for a server at `port`; end it on leaving. What it remembers is in `home`."""
        # The token where no `ps` shows it; the state where it goes with the rest of the demo.
        url = f"ws://127.0.0.1:{port}/ws/delivery/"
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
        try:
            if process.stdout is not None and process.stderr is not None:
                events, complaints = self._hear_events(process.stdout), self._hear_complaints(process.stderr)
                self._listening = [asyncio.create_task(events), asyncio.create_task(complaints)]
            yield
        finally:
            await to_the_end(end_process(process, signal.SIGTERM, signal.SIGKILL, grace_seconds=END_SECONDS))
            for task in self._listening:
                task.cancel()

    async def wait(self) -> int:
        """Wait until it has ended and everything that it said was heard; return its exit status."""
        if self._process is None:
            raise RuntimeError("the client was not started")
        await asyncio.gather(*self._listening)
        self.status = await self._process.wait()
        return self.status

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
