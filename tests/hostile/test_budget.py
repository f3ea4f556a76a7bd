"""Redis is smaller than what everybody together would put into it: uploads share it, and all of them complete.

`DELIVERY_MANY_UPLOADS=1000 DELIVERY_REDIS_MIB=256` is the full row.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import struct
import uuid
from collections.abc import AsyncIterator

import crc32c
import pytest

from delivery.models import Transfer
from tests.hostile.conftest import MIB, Open, Target
from tests.hostile.settings import MOST_LIVE
from tests.hostile.test_quotas import answer, offer, send
from tests.hostile.wire import BINARY, Wire, frame
from tests.stack import Person, Site

UPLOADS = int(os.environ.get("DELIVERY_MANY_UPLOADS", "100"))
REDIS_BYTES = int(os.environ.get("DELIVERY_REDIS_MIB", "64")) * MIB
SECONDS = 0.6 * UPLOADS + 60
EACH = 40  # uploads of one connection
CHUNK = 262_144
DATA = random.Random(3).randbytes(MIB + 77)
DIGEST = hashlib.sha256(DATA).hexdigest()
LOOK_SECONDS = 3.0  # the server looks at Redis every 2 s


class Redis:
    def __init__(self, target: Target) -> None:
        self._target = target

    async def allow(self, size: int) -> None:
        """Let Redis have `size` bytes, 0 for no limit, and give the server time to see it."""
        with contextlib.closing(self._target.stack.redis()) as client:
            client.config_set("maxmemory", size)
            client.config_set("maxmemory-policy", "noeviction")
        await asyncio.sleep(LOOK_SECONDS)

    def used(self) -> int:
        with contextlib.closing(self._target.stack.redis()) as client:
            return int(client.info("memory")["used_memory"])


@pytest.fixture
async def redis(target: Target) -> AsyncIterator[Redis]:
    redis = Redis(target)
    yield redis
    await redis.allow(0)


async def upload(wire: Wire, handle: int, turn: asyncio.Semaphore) -> str:
    """Do one upload as far as credit goes; return the digest in `done`."""
    transfer = str(uuid.uuid4())
    message = {"transfer": transfer, "handle": handle, "name": "n", "size": len(DATA), "chunk_size": CHUNK}
    async with turn:
        await wire.say("offer", **message)
        limit = (await wire.hear("accept", handle=handle, seconds=SECONDS))["limit"]
    chunks = -(-len(DATA) // CHUNK)
    for seq in range(chunks):
        while seq >= limit:
            limit = (await wire.hear("ack", handle=handle, seconds=SECONDS))["limit"]
        data = DATA[seq * CHUNK : (seq + 1) * CHUNK]
        await wire.send(frame(BINARY, struct.pack(">III", handle, seq, crc32c.crc32c(data)) + data))
    await wire.say("finish", handle=handle, chunks=chunks, size=len(DATA))
    sha256: str = (await wire.hear("done", handle=handle, seconds=SECONDS))["sha256"]
    return sha256


async def test_many_uploads_at_once_complete_through_a_small_redis(
    open_wire: Open, site: Site, target: Target, redis: Redis
) -> None:
    await redis.allow(REDIS_BYTES)
    people = [await site.person() for _ in range(-(-UPLOADS // EACH))]
    wires = [await open_wire(person) for person in people]
    turns = [asyncio.Semaphore(16) for _ in wires]  # at most 16 offers may be unanswered

    async def one(number: int) -> str:
        index, handle = divmod(number, EACH)
        return await upload(wires[index], handle + 1, turns[index])

    peak = 0
    work = asyncio.gather(*(one(number) for number in range(UPLOADS)))
    while not work.done():
        peak = max(peak, redis.used())
        await asyncio.wait({work}, timeout=0.1)
    assert set(work.result()) == {DIGEST}
    assert peak < REDIS_BYTES
    print(f"{UPLOADS} uploads, at most {peak / MIB:.0f} MiB of {REDIS_BYTES / MIB:.0f} in Redis")


@pytest.mark.usefixtures("unharmed")
async def test_credit_that_is_taken_and_never_used_stops_nobody(open_wire: Open, mallory: Person) -> None:
    wire = await open_wire(mallory)
    for handle in range(1, MOST_LIVE):
        await offer(wire, handle, size=1024 * MIB)
        await answer(wire, handle)
    limits = [message for message in wire.heard if isinstance(message, dict) and message["type"] == "ack"]
    assert limits == []
    await asyncio.sleep(1)


@pytest.mark.parametrize("how", ["abort", "abort and cut", "cut"])
@pytest.mark.usefixtures("unharmed")
async def test_what_is_sent_and_taken_back_leaves_redis_at_once(
    open_wire: Open, site: Site, redis: Redis, mallory: Person, how: str
) -> None:
    size, rounds = 8 * MIB, 6
    before = redis.used()
    for _ in range(rounds):
        wire = await open_wire(mallory)
        transfer = await offer(wire, 1, size=2 * size)
        await answer(wire, 1)
        await send(wire, 1, bytes(size - CHUNK), finish=False)
        await wire.settle()
        if how != "cut":
            await wire.say("abort", transfer=transfer, handle=1, code="cancelled", final=True)
        if how == "abort":
            await wire.settle()
        await wire.end()
    await site.until(lambda: redis.used() - before < size, what="room in Redis", seconds=10)
    if how != "cut":
        mine = Transfer.objects.filter(user=mallory.pk, state="live")
        await site.until(lambda: not mine.exists(), what="cancelled uploads", seconds=5)


async def test_a_full_redis_is_busy_and_takes_what_needs_none(
    open_wire: Open, site: Site, redis: Redis, mallory: Person
) -> None:
    wire = await open_wire(mallory)
    quiet = redis.used()
    for _ in range(50):  # others' chunks come and go
        await asyncio.sleep(0.03)
        quiet = min(quiet, redis.used())
    await redis.allow(int(quiet * 1.02))
    await offer(wire, 1)
    refused = await answer(wire, 1)
    assert refused["code"] == "busy"
    assert refused["retry_after"] > 0
    await offer(wire, 2, size=100)
    assert (await answer(wire, 2))["type"] == "accept"
    await send(wire, 2, bytes(100))
    assert (await answer(wire, 2))["type"] == "done"
    await redis.allow(0)
    await offer(wire, 3)
    assert (await answer(wire, 3))["type"] == "accept"
