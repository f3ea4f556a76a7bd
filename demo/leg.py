"""One client with its network: it is cut where planned, and what it says goes into the account."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.account import Account, amount, share
from demo.cuts import PayloadProxy
from rig.clients import ClientProcess
from rig.proxy import UP, Direction

PROGRESS_STEP = 0.1


@dataclass(frozen=True)
class Journey:
    """What one client is to do: move `size` bytes at `rate` bytes per second, cut at the given shares of the way."""

    name: str
    direction: Direction
    size: int
    rate: float
    cuts: Sequence[float]

    @property
    def positions(self) -> list[int]:
        """Where to cut, in bytes."""
        return [int(self.size * part) for part in self.cuts]


@dataclass(frozen=True)
class Resume:
    """Where a client went on, and how many bytes beyond that it had sent or received before; these go again."""

    offset: int
    again_bytes: int


class Leg:
    """A journey, and what becomes of it. `server_port`: where the proxy finds the server."""

    def __init__(self, journey: Journey, server_port: int, account: Account) -> None:
        self.journey = journey
        self.client = ClientProcess(self._on_event)
        self.proxy = PayloadProxy(
            server_port, journey.direction, positions=journey.positions, rate=journey.rate, told=self._on_cut
        )
        self.cuts_made = 0
        self.stored = 0
        """Bytes that are safe with the receiver, as the client knows it."""
        self.closes_seen: Counter[int] = Counter()
        self.resumes: list[Resume] = []
        self.moving = False
        self._account = account
        self._told = 0.0
        self._changed = asyncio.Event()

    @property
    def name(self) -> str:
        return self.journey.name

    @property
    def closes(self) -> Counter[str]:
        """How often which close code was seen, by the client's own account."""
        return Counter(self.client.summary.get("closes", {}))

    @property
    def resent_bytes(self) -> int:
        """Bytes that were on this client's wire more than once."""
        summary = self.client.summary
        return int(summary.get("resent_bytes", 0)) + int(summary.get("received_again_bytes", 0))

    @asynccontextmanager
    async def travelling(self, arguments: tuple[str, ...], *, token: str, home: Path) -> AsyncIterator[None]:
        """Run the client with `arguments` behind the proxy; end both on leaving."""
        async with self.proxy:
            try:
                await self.client.start(*arguments, url=self.proxy.ws_url, token=token, home=home)
                yield
            finally:
                await self.client.end()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return as soon as `holds`, looked at whenever something has happened to the client. One caller at a time."""
        while not holds():
            self._changed.clear()
            await self._changed.wait()

    def _say(self, text: str) -> None:
        self._account.say(self.name, text)

    def _on_cut(self, position: int) -> None:
        self.cuts_made += 1
        self._say(f"CUT at {self.place(position)}: connection reset, without a closing frame")

    def place(self, position: int) -> str:
        """Return a position in the payload for people."""
        return f"{amount(position)} ({share(position, self.journey.size)})"

    def _on_event(self, event: dict[str, Any]) -> None:
        self._account_for(event)
        self._changed.set()

    def _account_for(self, event: dict[str, Any]) -> None:
        match event.get("event"):
            case "connected":
                self._say(f"connected as {event['user']}")
            case "closed":
                self.moving = False
                self.closes_seen[event["code"]] += 1
                meaning = f" {event['reason']}" if event["reason"] else ""
                self._say(f"sees {event['code']}{meaning}; on again in {event['wait']:.1f} s")
            case "refused":
                self._say(f"cannot connect; tries again in {event['wait']:.1f} s")
            case "waiting":
                self._say(f"the server says {event['code']}; offers again in {event['wait']:.1f} s")
            case "resumed":
                resume = Resume(event["offset"], event["again"])
                self.resumes.append(resume)
                self.stored, self.moving = max(self.stored, resume.offset), True
                self.proxy.resume_at(resume.offset)
                self._say(f"resumes at {self.place(resume.offset)}; {amount(resume.again_bytes)} go again")
            case "progress":
                self._on_progress(event["stored"])
            case "done":
                self._say(f"done: {amount(event['size'])}, sha256 {event['sha256']}")
            case "failed":
                self._say(f"FAILED: {event['error']}")

    def _on_progress(self, stored: int) -> None:
        self.stored, self.moving = stored, True
        part = stored / self.journey.size if self.journey.size else 1.0
        if part >= self._told + PROGRESS_STEP:
            self._told = part
            where = "stored at the server" if self.journey.direction is UP else "received"
            self._say(f"{share(stored, self.journey.size):>4} {where}")
