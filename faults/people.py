"""Senders and recipients on the supplied client, each with a network of its own; what they see is noted."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from delivery.client import connect
from delivery.client.chunk_ceilings import Ceilings
from delivery.client.client import Client
from delivery.errors import DeliveryError
from faults.site import Person
from rig.proxy import Proxy


@dataclass
class Move:
    """One payload over one leg, as its client sees it. `moves`: (monotonic seconds, bytes safe with the receiver)."""

    who: str
    name: str
    size: int
    moves: list[tuple[float, int]] = field(default_factory=list)
    began: float | None = None
    ended: float | None = None
    transfer: str = ""
    payload: str = ""
    sha256: str = ""
    error: BaseException | None = None

    @property
    def stored(self) -> int:
        return self.moves[-1][1] if self.moves else 0

    @property
    def moving(self) -> bool:
        return self.began is not None and self.ended is None

    @property
    def share(self) -> float:
        if self.ended is not None:
            return 1.0
        return self.stored / self.size if self.size else 0.0

    def note(self, progress: Any) -> None:
        self.moves.append((time.monotonic(), progress.stored))

    def moved_after(self, moment: float) -> float | None:
        """Return when this moved next after `moment`, or ended."""
        before = max((stored for at, stored in self.moves if at <= moment), default=-1)
        for at, stored in self.moves:
            if at > moment and stored > before:
                return at
        return self.ended if self.ended is not None and self.ended > moment else None

    def longest_stop(self, since: float) -> float:
        """Return the longest time (seconds) without any progress, after `since` and before the end."""
        if self.began is None or self.ended is None or self.ended <= since:
            return 0.0
        start = max(self.began, since)
        stored = max((stored for at, stored in self.moves if at <= start), default=0)
        longest, last = 0.0, start
        for at, now in self.moves:
            if at > start and now > stored:
                longest, last, stored = max(longest, at - last), at, now
        return max(longest, self.ended - last)


class Watch:
    """What a client tells of itself; says what must not be."""

    def __init__(self, who: str) -> None:
        self.closes: Counter[int] = Counter()
        self.resumes = 0
        self.problems: list[str] = []
        self.connected = asyncio.Event()
        self.log: list[str] = []
        self._who = who
        self._began = time.monotonic()
        self._acked: dict[str, int] = {}

    def __call__(self, event: str, details: dict[str, Any]) -> None:
        self.log.append(f"{time.monotonic() - self._began:7.2f} {self._who} {event} {details}")
        if event == "connected":
            self.connected.set()
        elif event == "closed":
            self.closes[details["code"]] += 1
        elif event == "resumed":
            self.resumes += 1
            acked = self._acked.get(details["transfer"], 0)
            if details["role"] == "upload" and details["offset"] < acked:
                self.problems.append(f"{self._who}: resumed at {details['offset']}, although {acked} were acked")

    def acked(self, transfer: str, stored: int) -> None:
        """Note an acked position: it never falls."""
        if stored < self._acked.get(transfer, 0):
            self.problems.append(f"{self._who}: acked {stored} after {self._acked[transfer]}")
        self._acked[transfer] = max(self._acked.get(transfer, 0), stored)


class Party:
    """A person at a client: `uploads` and `deliveries` move. `async with`."""

    def __init__(self, name: str, person: Person, network: Proxy, folder: Path, **options: Any) -> None:
        self.name = name
        self.person = person
        self.network = network
        self.folder = folder
        self.moves: list[Move] = []
        self.watch = Watch(name)
        ceilings = Ceilings(folder / ".ceilings.json")  # ports come again in other trials
        self.client: Client = connect(network.ws_url, person.token, observer=self.watch, ceilings=ceilings, **options)
        self.expected: dict[str, Move] = {}  # deliveries by name
        self.reading = True
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Party:
        self._entering = asyncio.create_task(self.client.__aenter__())
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._entering.cancel()
        await asyncio.gather(self._entering, return_exceptions=True)
        await self.client.close()

    async def ready(self) -> None:
        await self._entering

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)

    @property
    def again_bytes(self) -> int:
        """What was on the wire twice."""
        return self.client.statistics.resent_bytes + self.client.statistics.received_again_bytes

    def send(self, data: bytes, to: list[str], name: str, *, source: Any = None) -> Move:
        """Begin to send `data`, or the `source` that produces it; the move ends by itself."""
        move = Move(self.name, name, len(data))
        self.moves.append(move)
        self._start(self._send(move, data if source is None else source, to))
        return move

    async def _send(self, move: Move, payload: Any, to: list[str]) -> None:
        def note(progress: Any) -> None:
            move.transfer = progress.transfer
            move.note(progress)
            self.watch.acked(progress.transfer, progress.stored)

        move.began = time.monotonic()
        try:
            await self.ready()
            receipt = await self.client.send(payload, to=to, name=move.name, progress=note)
            move.payload, move.sha256 = str(receipt.payload), receipt.sha256
        except (DeliveryError, OSError, TimeoutError) as error:
            move.error = error
        move.ended = time.monotonic()

    def expect(self, name: str, size: int) -> Move:
        """Say that a delivery of this name will come."""
        move = Move(self.name, name, size)
        self.moves.append(move)
        self.expected[name] = move
        return move

    def receive(self) -> None:
        """Save everything that is offered, several at once."""
        self._start(self._receive())

    async def _receive(self) -> None:
        try:
            await self.ready()
            async for incoming in self.client.deliveries():
                self._start(self._save(incoming))
        except DeliveryError as error:
            self.watch.problems.append(f"{self.name}: {error!r}")

    async def _save(self, incoming: Any) -> None:
        move = self.expected.get(incoming.name)
        if move is None:
            self.watch.problems.append(f"{self.name} was offered {incoming.name!r}, which nobody sent")
            return
        if move.ended is not None and move.error is None:
            self.watch.problems.append(f"{self.name} was offered {incoming.name!r} again after it was done")
        move.began = move.began or time.monotonic()
        move.transfer = incoming.transfer
        try:
            path = await incoming.save(self.folder, progress=move.note)
            move.sha256 = await asyncio.to_thread(digest_of, path)
            move.error = None
        except (DeliveryError, OSError) as error:
            move.error = error
        move.ended = time.monotonic()


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def every(moves: list[Move], *, seconds: float, look: Callable[[Move], bool] | None = None) -> list[Move]:
    """Return the moves that have not ended (or do not pass `look`) after the time; empty as soon as all have."""
    passes = look or (lambda move: move.ended is not None)
    deadline = time.monotonic() + seconds
    while left := [move for move in moves if not passes(move)]:
        if time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.02)
    return []
