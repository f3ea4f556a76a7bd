"""A run is asked for at once; where many wait, a few of them share a task."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest

from delivery.buffer import leases
from delivery.errors import BufferUnavailable
from delivery.protocol.storing import ChunkRange
from delivery.server import store_requests
from delivery.server.store_requests import MOST_RUNS, StoreRequests
from delivery.transfers.segments import StoreRequest

MIB = 1024 * 1024
SEGMENT = 16 * MIB


class Tasks:
    """Notes what each task is published with."""

    def __init__(self) -> None:
        self.published: list[list[int]] = []
        self.broken = False
        self.store_requests = StoreRequests(self._publish, lambda: 1, segment=SEGMENT)

    async def _publish(self, orders: Sequence[StoreRequest]) -> None:
        if self.broken:
            raise BufferUnavailable("the broker does not take tasks")
        self.published.append([order.chunks.start for order in orders])

    async def ask(self, *starts: int, length: int = MIB) -> list[BaseException | None]:
        orders = (
            StoreRequest(uuid4(), uuid4(), 1, ChunkRange(start, start + 1), length, start * length, length)
            for start in starts
        )
        asking = (self.store_requests.ask(order, follows=False) for order in orders)
        return await asyncio.gather(*asking, return_exceptions=True)


@pytest.fixture
def tasks() -> Tasks:
    return Tasks()


@pytest.fixture
def busy(tasks: Tasks) -> Tasks:
    for _ in range(store_requests.BACKLOG_RUNS):
        tasks.store_requests.note(object(), 1)
    return tasks


async def test_each_run_has_its_task_at_once_while_few_wait(tasks: Tasks) -> None:
    await tasks.ask(0, 1, 2)
    assert tasks.published == [[0], [1], [2]]


async def test_runs_share_tasks_while_many_wait(busy: Tasks) -> None:
    await busy.ask(*range(2 * MOST_RUNS + 1))
    first, second, rest = busy.published
    assert (first, second) == ([0, 1, 2, 3], [4, 5, 6, 7])
    assert rest == [8]  # which nobody joined for a moment


async def test_a_task_is_not_too_long(busy: Tasks) -> None:
    await busy.ask(*range(4), length=SEGMENT // 2)
    assert busy.published == [[0, 1], [2, 3]]
    busy.published.clear()
    await busy.ask(0, 1, length=SEGMENT + MIB)
    assert busy.published == [[0], [1]]


async def test_uploads_that_are_through_count_no_more(tasks: Tasks) -> None:
    uploads = [object() for _ in range(store_requests.BACKLOG_RUNS)]
    for upload in uploads:
        tasks.store_requests.note(upload, 1)
    tasks.store_requests.note(uploads[0], 0)
    await tasks.ask(0, 1)
    assert tasks.published == [[0], [1]]


async def test_who_asks_hears_that_the_broker_is_gone(busy: Tasks) -> None:
    busy.broken = True
    outcomes = await busy.ask(*range(MOST_RUNS))
    assert [type(outcome) for outcome in outcomes] == [BufferUnavailable] * MOST_RUNS


async def test_one_that_gave_up_waiting_keeps_nobody_else_from_it(busy: Tasks) -> None:
    order = StoreRequest(uuid4(), uuid4(), 1, ChunkRange(0, 1), MIB, 0, MIB)
    gone = asyncio.ensure_future(busy.store_requests.ask(order, follows=False))
    await asyncio.sleep(0)
    gone.cancel()
    await busy.ask(1)
    assert busy.published == [[0, 1]]


@pytest.mark.parametrize("takes", [True, False])
async def test_a_run_that_follows_another_goes_to_its_task(
    tasks: Tasks, monkeypatch: pytest.MonkeyPatch, *, takes: bool
) -> None:
    async def agive(*_: Any) -> bool:
        return takes

    monkeypatch.setattr(leases, "ahand_over", agive)
    await tasks.store_requests.ask(StoreRequest(uuid4(), uuid4(), 1, ChunkRange(7, 8), MIB, 0, MIB), follows=True)
    assert tasks.published == ([] if takes else [[7]])
