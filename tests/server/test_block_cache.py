"""Asking for ranges: once while one is on its way, again as soon as it is gone."""

from __future__ import annotations

from typing import Any, cast
from uuid import uuid4

import pytest

from delivery.buffer.blocks import RANGE_GROUPS, RANGE_SIZE
from delivery.server import block_cache
from delivery.server.block_cache import FAST_SECONDS, LEAD_GROUPS, STAGING_SECONDS, BlockCache

PAYLOAD = uuid4()
SIZE = 8 * RANGE_SIZE


class Publisher:
    """Notes which ranges are asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []  # first ranges
        self.counts: list[int] = []
        self.marked = False  # somebody else asked a moment before

    async def publish(self, task: str, arguments: dict[str, Any], *, marker: str, attempt: int) -> bool:
        if self.marked:
            return False
        self.asked.append(arguments["range"])
        self.counts.append(arguments["count"])
        return True


@pytest.fixture
def publisher() -> Publisher:
    return Publisher()


@pytest.fixture
def blocks(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> BlockCache:
    async def nothing_staged(payload: object, index: int) -> bool:
        return False

    monkeypatch.setattr(block_cache.blocks, "astaged", nothing_staged)
    return BlockCache(cast(Any, publisher), cast(Any, None), RANGE_SIZE, lambda *_: None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(block_cache.time, "monotonic", lambda: now[0])
    return now


async def read(blocks: BlockCache, clock: list[float], seconds: float, ranges: int = 8) -> None:
    """Read a payload from its beginning, `seconds` for each range."""
    for group in range(ranges * RANGE_GROUPS):
        await blocks.stage_ahead(PAYLOAD, SIZE, group)
        clock[0] += seconds / RANGE_GROUPS


async def test_a_slow_reader_has_the_next_range_staged_once(
    blocks: BlockCache, publisher: Publisher, clock: list[float]
) -> None:
    await read(blocks, clock, 2 * FAST_SECONDS, ranges=3)
    assert publisher.asked == [1, 2, 3]
    assert publisher.counts == [1, 1, 1]


async def test_a_fast_reader_has_two_ranges_staged_by_one_task(
    blocks: BlockCache, publisher: Publisher, clock: list[float]
) -> None:
    await read(blocks, clock, FAST_SECONDS / 4)
    assert publisher.asked == [1, 2, 4, 6]
    assert publisher.counts == [1, 2, 2, 2]


async def test_two_ranges_are_asked_for_half_a_range_before_the_first_is_the_next(
    blocks: BlockCache, publisher: Publisher, clock: list[float]
) -> None:
    await read(blocks, clock, FAST_SECONDS / 4, ranges=2)
    assert publisher.asked == [1, 2]
    for group in range(2 * RANGE_GROUPS, 3 * RANGE_GROUPS - LEAD_GROUPS):
        await blocks.stage_ahead(PAYLOAD, SIZE, group)
    assert publisher.asked == [1, 2]
    await blocks.stage_ahead(PAYLOAD, SIZE, 3 * RANGE_GROUPS - LEAD_GROUPS)
    assert publisher.asked == [1, 2, 4]


async def test_a_pair_that_would_reach_behind_the_end_is_one_range(
    blocks: BlockCache, publisher: Publisher, clock: list[float]
) -> None:
    for group in range(4 * RANGE_GROUPS):
        await blocks.stage_ahead(PAYLOAD, 3 * RANGE_SIZE, group)
    assert (publisher.asked, publisher.counts) == ([1, 2], [1, 1])


async def test_the_second_of_two_is_asked_for_where_only_the_first_is_staged_already(
    blocks: BlockCache, publisher: Publisher, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def second_staged(payload: object, index: int) -> bool:
        return index == 2  # by another process, whose reader is slow

    monkeypatch.setattr(block_cache.blocks, "astaged", second_staged)
    await read(blocks, clock, FAST_SECONDS / 4, ranges=4)
    assert publisher.asked == [1, 3, 5]


async def test_nothing_is_asked_for_behind_the_end(blocks: BlockCache, publisher: Publisher) -> None:
    await blocks.stage_ahead(PAYLOAD, RANGE_SIZE + 1, 0)
    assert publisher.asked == [1]


async def test_what_was_dropped_is_asked_for_again(blocks: BlockCache, publisher: Publisher) -> None:
    await blocks.stage_ahead(PAYLOAD, SIZE, 0)
    blocks.note_dropped(PAYLOAD, 1)
    await blocks.stage_ahead(PAYLOAD, SIZE, 0)
    assert publisher.asked == [1, 1]


async def test_a_range_is_on_its_way_for_a_moment(blocks: BlockCache, clock: list[float]) -> None:
    await blocks.stage_ahead(PAYLOAD, SIZE, 0)
    assert blocks.on_its_way(PAYLOAD, 1)
    assert not blocks.on_its_way(PAYLOAD, 0)  # nobody has asked for it
    clock[0] += STAGING_SECONDS + 0.1  # its task may be lost
    assert not blocks.on_its_way(PAYLOAD, 1)


async def test_what_another_process_asked_for_is_not_waited_for(blocks: BlockCache, publisher: Publisher) -> None:
    publisher.marked = True
    await blocks.stage_ahead(PAYLOAD, SIZE, 0)
    assert not blocks.on_its_way(PAYLOAD, 1)  # it may have read and dropped it when we get there


async def test_a_range_that_was_read_and_is_gone_is_asked_for_at_once(
    blocks: BlockCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def get(line: object, payload: object, first: int, count: int) -> list[Any]:
        return []

    monkeypatch.setattr(block_cache.blocks, "aget", get)
    await blocks.ask(PAYLOAD, 0, attempt=0)
    assert blocks.on_its_way(PAYLOAD, 0)
    await blocks.get(PAYLOAD, SIZE, 0)
    assert not blocks.on_its_way(PAYLOAD, 0)
