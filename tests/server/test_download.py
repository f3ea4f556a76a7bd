"""A delivery's blocks: fetched ahead of what is sent, no further than its credit, and let go of behind it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from delivery.buffer.blocks import BLOCK_SIZE, GROUP_BLOCKS, GROUP_SIZE, Block
from delivery.errors import StorageUnavailable
from delivery.protocol.frames import checksum
from delivery.protocol.messages import Accept, Ack, DeliveryOffer
from delivery.protocol.sender import Sender
from delivery.server.block_cache import Group
from delivery.server.download import DownloadSender

GROUPS = 8
SIZE = GROUPS * GROUP_SIZE - 1000
GROUP_CHUNKS = GROUP_BLOCKS  # a chunk is as large as a block here
SETTLE = 20  # turns of the loop


class Cache:
    """Has the groups that `give` lets it have."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self._given: dict[int, asyncio.Future[Group]] = {}

    async def get(self, payload: UUID, size: int, group: int) -> Group:
        self.begun.append(group)
        return await self._group(group)

    def _group(self, number: int) -> asyncio.Future[Group]:
        return self._given.setdefault(number, asyncio.get_running_loop().create_future())

    async def stage_ahead(self, payload: UUID, size: int, group: int) -> None:
        pass

    def lose(self, group: int) -> None:
        self._group(group).set_exception(StorageUnavailable("gone"))

    def give(self, group: int) -> None:
        first, last = group * GROUP_SIZE, min((group + 1) * GROUP_SIZE, SIZE)
        lengths = [min(BLOCK_SIZE, last - at) for at in range(first, last, BLOCK_SIZE)]
        data = [bytes([group]) * length for length in lengths]
        self._group(group).set_result([Block(one, checksum(one)) for one in data])


@pytest.fixture
def cache() -> Cache:
    return Cache()


Opened = Callable[[int], DownloadSender]


@pytest.fixture
async def opened(cache: Cache) -> AsyncIterator[Opened]:
    """Return what opens a running delivery with credit for some groups."""
    readers = SimpleNamespace(move=lambda *_: None, leave=lambda *_: None)
    async with contextlib.AsyncExitStack() as stack:

        def open_one(credit: int) -> DownloadSender:
            offer = DeliveryOffer(
                transfer=str(uuid4()),
                handle=1,
                name="",
                size=SIZE,
                content_type="",
                chunk_size=BLOCK_SIZE,
                payload=str(uuid4()),
            )
            sender = Sender(offer)
            limit = credit * GROUP_CHUNKS
            sender.on_accept(Accept(transfer=offer.transfer, handle=1, seq=0, chunk_size=BLOCK_SIZE, limit=limit), 0.0)
            process = SimpleNamespace(cache=cache, readers=readers)
            waiting = SimpleNamespace(payload=uuid4(), size=SIZE, inline=None)
            outflow = DownloadSender(cast(Any, process), sender, cast(Any, waiting), lambda: None)
            outflow.task = asyncio.ensure_future(outflow.run())
            stack.callback(outflow.task.cancel)
            outflow.grant()
            return outflow

        yield open_one


async def settle() -> None:
    for _ in range(SETTLE):
        await asyncio.sleep(0)


def send_group(outflow: DownloadSender) -> bytes:
    """Take the frames of one group; return the first byte of each."""
    firsts = bytearray()
    for _ in range(GROUP_CHUNKS):
        frame = outflow.frame()
        assert frame is not None
        firsts += frame[1][:1]
        outflow.sender.chunk_sent(outflow.sender.next_seq, 0.0)
    return bytes(firsts)


async def test_one_group_is_fetched_ahead(opened: Opened, cache: Cache) -> None:
    outflow = opened(GROUPS)
    await settle()
    assert outflow.frame() is None
    for number in range(3):
        cache.give(number)
    await settle()
    assert cache.begun == [0, 1]
    send_group(outflow)
    assert outflow.frame() is not None  # the second group is begun
    await settle()
    assert cache.begun == [0, 1, 2]


async def test_nothing_is_fetched_that_there_is_no_credit_for(opened: Opened, cache: Cache) -> None:
    outflow = opened(1)
    cache.give(0)
    await settle()
    assert cache.begun == [0]
    outflow.sender.on_ack(Ack(handle=1, seq=0, received=0, limit=2 * GROUP_CHUNKS), 0.0)
    outflow.wake()
    await settle()
    assert cache.begun == [0, 1]


async def test_all_of_it_comes_in_order_and_little_is_held(opened: Opened, cache: Cache) -> None:
    outflow = opened(GROUPS)
    for number in range(GROUPS):
        cache.give(number)
        await settle()
        assert len(outflow._groups) <= 2
        assert send_group(outflow) == bytes([number]) * GROUP_CHUNKS
    assert outflow.sender.finish_due()
    assert cache.begun == list(range(GROUPS))


async def test_what_cannot_be_read_ends_it(opened: Opened, cache: Cache) -> None:
    outflow = opened(GROUPS)
    cache.lose(0)
    assert outflow.task is not None
    with pytest.raises(StorageUnavailable):
        await outflow.task
