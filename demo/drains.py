"""Shutting down, on the way, what serves the upload: first its worker, then the web process (DESIGN, "Going away")."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from demo import site
from demo.account import Account, amount
from demo.leg import Leg
from rig.processes import Failed
from rig.stack import Stack

WORKER_AT, WEB_AT = 0.3, 0.6
SHUTDOWNS = 2
GOING_AWAY = 1001
#: PROTOCOL section 3: what may be sent and not acked, and so what goes again at most.
WINDOW_BYTES = 33_554_432
#: How long after SIGTERM the 1001 may come: telling, flushing, and what a slow network still holds before our answer.
NOTICED_SECONDS = 9.0
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Drain:
    """A part that was shut down, with the bytes that were stored then, and those that the sender sent again for it."""

    part: str
    stored: int
    resent_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that go into JSON."""
        return asdict(self)


class Drains:
    """Shuts parts of `stack` down while `sender` uploads. `made` holds those that the sender was told of."""

    def __init__(self, stack: Stack, sender: Leg, account: Account) -> None:
        self.made: list[Drain] = []
        self._stack = stack
        self._sender = sender
        self._account = account

    async def run(self) -> None:
        """Return once the sender has gone on after the second shutdown. Cancel it where the upload ends before."""
        # Tasks go to whoever is free. If the other one has stored a part in the moment between asking and telling, it
        # serves, and nobody is told to go away; while the first is away, the second try cannot miss.
        for _ in self._stack.workers():
            async with self._undisturbed(WORKER_AT):
                if await self._shut_down(await self._serving_worker()):
                    break
        async with self._undisturbed(WEB_AT):
            await self._shut_down("web")

    @asynccontextmanager
    async def _undisturbed(self, part: float) -> AsyncIterator[None]:
        """Wait until that part is stored, and put cuts off: one at the same moment would hide the close that we want."""
        sender = self._sender
        await sender.until(lambda: sender.moving and sender.stored >= part * sender.journey.size)
        sender.proxy.put_off()
        try:
            yield
        finally:
            sender.proxy.go_on()

    async def _serving_worker(self) -> str:
        while (upload := await asyncio.to_thread(site.upload)) is None or not upload.worker:
            await asyncio.sleep(POLL_SECONDS)
        return upload.worker

    async def _shut_down(self, part: str) -> bool:
        """Send SIGTERM to the part; return whether the sender was told to go away, and has come back."""
        sender = self._sender
        try:
            pid = self._stack.pid(part)
        except Failed:
            return False
        stored, told, resumes = sender.stored, sender.closes_seen[GOING_AWAY], len(sender.resumes)
        self._account.say(part, f"SIGTERM to process {pid}, with {sender.place(stored)} stored")
        os.kill(pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(NOTICED_SECONDS):
                await sender.until(lambda: sender.closes_seen[GOING_AWAY] > told)
        except TimeoutError:
            self._account.say(part, f"{sender.name} saw no {GOING_AWAY}: another part had served meanwhile")
            return False
        await sender.until(lambda: len(sender.resumes) > resumes or sender.client.done is not None)
        # Where everything was stored already, the sender is told so, and has nothing to resume.
        again = sender.resumes[resumes].again_bytes if len(sender.resumes) > resumes else 0
        self._account.say(
            part, f"drained: {sender.name} sends {amount(again)} again; a window is {amount(WINDOW_BYTES)}"
        )
        self.made.append(Drain(part, stored, again))
        return True
