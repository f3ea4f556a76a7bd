"""Nobody is told through Redis while there is nobody, and nobody who comes misses what arrived meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from delivery.buffer import registry
from delivery.errors import BufferUnavailable
from delivery.server.neighbours import Neighbours

ME, OTHER = "me", "other"


class Redis:
    """What `registry` would find. `hold`: answers come only once it is set."""

    def __init__(self) -> None:
        self.live = {ME}
        self.away = False
        self.told: list[str] = []
        self.hold: asyncio.Event | None = None

    async def arenew(self, web: str) -> frozenset[str]:
        found = frozenset(self.live)
        if self.hold is not None:
            await self.hold.wait()
        if self.away:
            raise BufferUnavailable("away")
        return found

    async def atell(self, web: str) -> None:
        self.told.append(web)


class Topics:
    """The subscriber of the process."""

    def __init__(self) -> None:
        self.listener: Any = None

    async def add(self, topic: str, listener: Any) -> None:
        assert topic == registry.WEBS_TOPIC
        self.listener = listener


class Rig:
    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.topics = Topics()
        self.late: list[str] = []
        self.neighbours = Neighbours(ME, self.topics, self._tell)  # type: ignore[arg-type]

    def _tell(self, addresses: Iterable[str]) -> None:
        self.late += addresses

    async def look(self) -> None:
        await self.neighbours._look()


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    redis = Redis()
    monkeypatch.setattr(registry, "arenew_web", redis.arenew)
    monkeypatch.setattr(registry, "aannounce_web", redis.atell)
    return Rig(redis)


async def test_before_the_first_look_others_are_told(rig: Rig) -> None:
    assert not rig.neighbours.alone("user:1")


async def test_who_is_alone_tells_nobody(rig: Rig) -> None:
    await rig.look()
    assert rig.neighbours.alone("user:1")
    await rig.look()
    assert not rig.late


async def test_who_comes_is_told_late_what_arrived_since_the_last_look(rig: Rig) -> None:
    await rig.look()
    rig.neighbours.alone("user:1")
    await rig.look()  # nobody was there yet: whoever comes now finds the first in the rows
    rig.neighbours.alone("user:2")
    rig.redis.live.add(OTHER)
    await rig.look()
    assert rig.late == ["user:2"]
    assert not rig.neighbours.alone("user:3")


async def test_what_arrived_while_looking_is_told_at_the_next_look(rig: Rig) -> None:
    await rig.look()
    rig.redis.hold = asyncio.Event()
    looking = asyncio.create_task(rig.look())
    await asyncio.sleep(0)
    rig.redis.live.add(OTHER)
    rig.neighbours.alone("user:1")
    rig.redis.hold.set()
    await looking
    assert not rig.late
    await rig.look()
    assert rig.late == ["user:1"]


async def test_who_says_that_it_came_is_told_at_once_and_stays_known(rig: Rig) -> None:
    running = asyncio.create_task(rig.neighbours.run())
    await asyncio.wait_for(rig.neighbours.announced.wait(), 5)
    assert rig.redis.told == [ME]
    rig.topics.listener({"web": ME})
    assert rig.neighbours.alone("user:1")
    rig.redis.hold = asyncio.Event()
    looking = asyncio.create_task(rig.look())
    await asyncio.sleep(0)
    rig.topics.listener({"web": OTHER})
    assert rig.late == ["user:1"]
    rig.redis.hold.set()  # its answer is older than what was heard
    await looking
    assert not rig.neighbours.alone("user:2")
    running.cancel()


async def test_without_redis_others_are_told_as_far_as_that_goes(rig: Rig) -> None:
    await rig.look()
    rig.neighbours.alone("user:1")
    rig.redis.away = True
    await rig.look()
    assert rig.late == ["user:1"]
    assert not rig.neighbours.alone("user:2")
    rig.redis.away = False
    await rig.look()
    assert rig.neighbours.alone("user:3")
