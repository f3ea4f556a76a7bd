"""Many clients in the middle of something, and what each of them saw."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delivery.client import connect
from delivery.client.client import Client
from tests.going_away.rig import Rig
from tests.stack import Person, Site

WINDOW_BYTES = 32 * 1024 * 1024
DATA = random.Random(5).randbytes(40 * 1024 * 1024 + 77)
DIGEST = hashlib.sha256(DATA).hexdigest()


@dataclass
class Member:
    """A client with one transfer."""

    client: Client
    kind: str
    position: int = 0
    sha256: str = ""

    def note(self, progress: Any) -> None:
        self.position = progress.stored

    @property
    def again_bytes(self) -> int:
        """What was on the wire twice."""
        counted = self.client.statistics
        return counted.resent_bytes + counted.received_again_bytes


class Crowd:
    """Senders and receivers of `DATA`, one connection and one transfer each. `async with`, then `run`."""

    def __init__(self, rig: Rig, site: Site, person: Person, folder: Path) -> None:
        self.members: list[Member] = []
        self._rig, self._site, self._person, self._folder = rig, site, person, folder

    async def start(self, *, senders: int, receivers: int) -> list[Awaitable[None]]:
        """Return the transfers, as tasks."""
        if receivers:
            await self._site.run(deliver_to, self._person.pk, DATA)
        work = [self._send() for _ in range(senders)] + [self._receive() for _ in range(receivers)]
        return [asyncio.create_task(one) for one in work]

    def _join(self, kind: str, **options: Any) -> Member:
        member = Member(connect(self._rig.ws_url, self._person.token, **options), kind)
        self.members.append(member)
        return member

    async def _send(self) -> None:
        member = self._join("upload")
        async with member.client as client:
            receipt = await client.send(DATA, progress=member.note, deadline=60)
        member.sha256 = receipt.sha256

    async def _receive(self) -> None:
        member = self._join("delivery", receive=True)
        async with member.client as client, asyncio.timeout(60):
            async for incoming in client.deliveries():
                folder = self._folder / str(id(member))
                folder.mkdir()
                path = await incoming.save(folder, progress=member.note)
                member.sha256 = await asyncio.to_thread(_digest, path)
                return

    async def all_past(self, position: int) -> None:
        """Return when every transfer has `position` bytes stored at its receiver."""
        async with asyncio.timeout(30):
            while not (self.members and all(member.position >= position for member in self.members)):
                await asyncio.sleep(0.005)

    def report(self, title: str) -> None:
        for member in self.members:
            closes = dict(member.client.statistics.closes)
            print(f"{title}: {member.kind}, closes {closes}, {member.again_bytes / 2**20:.2f} MiB again")

    def closes(self) -> set[int]:
        return {code for member in self.members for code in member.client.statistics.closes}


def deliver_to(pk: int, data: bytes) -> None:
    """Have the site deliver `data` to a user."""
    from django.contrib.auth.models import User

    from delivery import deliver

    deliver(data, to=User.objects.get(pk=pk), name="data.bin")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
