"""The command-line client as a process: started, stopped, killed, started again; what it says is noted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from faults.people import Move, Watch
from faults.site import Person
from faults.stack import ROOT, own_environment


class Command:
    """`python -m delivery.client ARGUMENTS` of one person. It may be run several times; events come from all runs."""

    def __init__(self, who: str, person: Person, url: str, home: Path, *arguments: str) -> None:
        self.watch = Watch(who)
        self.moves: dict[str, Move] = {}  # what is expected, by name
        self.again_bytes = 0
        self.status: int | None = None
        self.complaints: deque[str] = deque(maxlen=20)
        self._arguments = arguments
        self._receives = arguments[0] == "receive"
        self._environment = own_environment(DELIVERY_URL=url, DELIVERY_TOKEN=person.token, XDG_STATE_HOME=str(home))
        self._process: asyncio.subprocess.Process | None = None
        self._listening: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Run it, once more."""
        self.status = None
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "delivery.client", *self._arguments, "--json"),
            cwd=ROOT,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 20,
            start_new_session=True,
        )
        self._listening = [
            asyncio.create_task(self._hear(process)),
            asyncio.create_task(self._hear_complaints(process)),
        ]

    def send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL it, and wait until it is gone."""
        self.send(signal.SIGKILL)
        await self.wait()

    async def wait(self) -> int:
        """Return its exit status once it has ended and all that it said was heard."""
        if self._process is None:
            return 0
        await asyncio.gather(*self._listening)
        self.status = await self._process.wait()
        return self.status

    async def end(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        for task in self._listening:
            task.cancel()

    async def _hear(self, process: asyncio.subprocess.Process) -> None:
        if process.stdout is None:
            return
        async for line in process.stdout:
            with contextlib.suppress(ValueError):
                self._take(json.loads(line))

    def _take(self, event: dict[str, Any]) -> None:
        kind = event.pop("event", "")
        if kind == "progress":
            if (move := self.moves.get(event["name"])) is not None:
                move.began = move.began or time.monotonic()
                move.moves.append((time.monotonic(), event["stored"]))
            if not self._receives:
                self.watch.acked(event["transfer"], event["stored"])
            return
        self.watch(kind, event)
        if kind == "resumed":
            self.again_bytes += event.get("again", 0)
        elif kind == "done" and (move := self.moves.get(event["name"])) is not None:
            move.began = move.began or time.monotonic()
            move.ended, move.sha256 = time.monotonic(), event["sha256"]
            # What a recipient has is looked up by its own rows; a sender says what it has made.
            move.payload = "" if self._receives else event["payload"]
        elif kind == "failed":
            self.complaints.append(str(event))

    async def _hear_complaints(self, process: asyncio.subprocess.Process) -> None:
        if process.stderr is None:
            return
        async for line in process.stderr:
            self.complaints.append(line.decode(errors="replace").rstrip())
