"""What comes together is written together, and nothing that was added is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from delivery.server.batching import MOST, Batcher


class Book:
    """Writes numbers, and remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    async def write(self, batch: Sequence[int]) -> list[int]:
        await asyncio.sleep(0)
        self.batches.append(list(batch))
        if 13 in batch:
            raise ValueError("13")
        return [2 * number for number in batch]


async def test_each_gets_its_own_outcome() -> None:
    book = Book()
    batcher: Batcher[int, int] = Batcher(book.write, "numbers")
    assert await asyncio.gather(*(batcher.put(number) for number in range(5))) == [0, 2, 4, 6, 8]
    assert book.batches == [[0, 1, 2, 3, 4]]


async def test_all_of_a_batch_hear_that_it_failed() -> None:
    batcher: Batcher[int, int] = Batcher(Book().write, "numbers")
    outcomes = await asyncio.gather(batcher.put(1), batcher.put(13), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ValueError, ValueError]
    assert await batcher.put(2) == 4


async def test_an_exception_among_the_outcomes_is_one_items() -> None:
    async def write(batch: Sequence[int]) -> list[int | Exception]:
        return [ValueError(number) if number == 13 else number for number in batch]

    batcher: Batcher[int, int] = Batcher(write, "numbers")
    first, second, third = await asyncio.gather(batcher.put(1), batcher.put(13), batcher.put(2), return_exceptions=True)
    assert (first, third) == (1, 2)
    assert isinstance(second, ValueError)


async def test_a_batch_that_takes_long_leaves_the_other_lane_free() -> None:
    held = asyncio.Event()

    async def write(batch: Sequence[int]) -> list[int]:
        if 13 in batch:
            await held.wait()
        return list(batch)

    batcher: Batcher[int, int] = Batcher(write, "numbers", lanes=2)
    slow = batcher.add(13)
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert await asyncio.gather(*(batcher.put(number) for number in range(3))) == [0, 1, 2]
    assert not slow.done()
    held.set()
    await batcher.stop()
    assert slow.result() == 13


async def test_a_pace_gathers_who_comes_in_a_crowd() -> None:
    book = Book()
    batcher: Batcher[int, int] = Batcher(book.write, "numbers", pace_seconds=0.05)
    began = time.monotonic()
    assert await batcher.put(1) == 2  # alone: at once
    assert time.monotonic() - began < 0.05
    first = batcher.add(2)
    await asyncio.sleep(0.01)
    assert await batcher.put(3) == 6
    assert first.done()
    assert time.monotonic() - began >= 0.05
    assert book.batches == [[1], [2, 3]]


async def test_lanes_keep_the_pace_together() -> None:
    book = Book()
    batcher: Batcher[int, int] = Batcher(book.write, "numbers", pace_seconds=0.05, lanes=2)
    await batcher.put(1)
    waiting = [batcher.add(2), batcher.add(3)]
    await asyncio.gather(*waiting)
    assert book.batches == [[1], [2, 3]]


async def test_stopping_keeps_no_pace() -> None:
    book = Book()
    batcher: Batcher[int, int] = Batcher(book.write, "numbers", pace_seconds=0.2)
    await batcher.put(1)
    last = batcher.add(2)
    await batcher.stop()
    assert last.result() == 4


async def test_lingering_gathers_what_comes_meanwhile() -> None:
    book = Book()
    batcher: Batcher[int, int] = Batcher(book.write, "numbers", linger_seconds=0.05)
    first = batcher.add(1)
    await asyncio.sleep(0.01)
    assert await batcher.put(2) == 4
    assert first.done()
    assert book.batches == [[1, 2]]


async def test_a_full_batch_does_not_linger() -> None:
    book = Book()
    batcher: Batcher[int, int] = Batcher(book.write, "numbers", linger_seconds=60)
    added = [batcher.add(number + 100) for number in range(MOST)]
    async with asyncio.timeout(5):
        await asyncio.gather(*added)
    assert len(book.batches) == 1


@pytest.mark.parametrize("how", ["settle", "stop"])
async def test_settling_and_stopping_write_at_once(how: str) -> None:
    book = Book()
    batcher: Batcher[int, int] = Batcher(book.write, "numbers", linger_seconds=60)
    batcher.add(1)
    began = time.monotonic()
    await asyncio.sleep(0)
    await getattr(batcher, how)()
    assert book.batches == [[1]]
    assert time.monotonic() - began < 5


async def test_lingering_begins_anew_after_settling() -> None:
    book = Book()
    batcher: Batcher[int, int] = Batcher(book.write, "numbers", linger_seconds=0.05)
    batcher.add(1)
    await batcher.settle()
    batcher.add(2)
    await asyncio.sleep(0.01)
    batcher.add(3)
    await batcher.stop()
    assert book.batches == [[1], [2, 3]]
