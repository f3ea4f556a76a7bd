"""A task that stores quickly takes the next runs of its upload; nothing is lost where it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync

from delivery.buffer import chunks, leases, pool
from delivery.models import Segment, Transfer
from delivery.transfers import handover, segments
from delivery.transfers.segments import StoreRequest
from tests.transfers.test_storing import DATA, RUN, buffered, stored, upload

__all__ = ["upload"]
pytestmark = pytest.mark.django_db(transaction=True)


@async_to_sync
async def give(order: StoreRequest) -> bool:
    try:
        return await leases.ahand_over(order.payload, order.lease, handover.packed(order))
    finally:
        await pool.aclose()


def at_settling(monkeypatch: pytest.MonkeyPatch, act: Callable[[StoreRequest], None]) -> None:
    """Have `act` called with each order once it is stored, and before its task looks for more."""
    settle = segments._settle

    def settling(order: StoreRequest, *args: Any, **kwargs: Any) -> None:
        settle(order, *args, **kwargs)
        act(order)

    monkeypatch.setattr(segments, "_settle", settling)


def run(*orders: StoreRequest, draining: bool = False) -> None:
    handover.store_all(orders, worker="bee", draining=lambda: draining)


def test_runs_that_come_while_one_is_hashed_are_stored_by_the_same_task(
    upload: Transfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[bool] = []
    at_settling(
        monkeypatch,
        lambda order: taken.append(order.chunks.start < 6 and give(buffered(upload, order.chunks.start // 3 + 1))),
    )
    run(buffered(upload, 0))
    assert taken == [True, True, False]
    assert stored(upload) == DATA
    assert not give(buffered(upload, 0))  # nobody looks any more


def test_a_run_that_comes_while_one_is_being_stored_waits_for_a_quick_task(
    upload: Transfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[bool] = []
    commit = segments._commit

    def committing(order: StoreRequest, *args: Any) -> None:
        if order.chunks.start < 6:
            taken.append(give(buffered(upload, order.chunks.start // 3 + 1)))
        commit(order, *args)

    monkeypatch.setattr(segments, "_commit", committing)
    run(buffered(upload, 0), buffered(upload, 1))
    assert taken == [False, True]  # before the first one is stored, nobody knows how quick it is
    assert stored(upload) == DATA


def test_a_slow_storage_keeps_each_run_a_task_of_its_own(upload: Transfer, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bool] = []
    monkeypatch.setattr(handover, "QUICK_SECONDS", 0.0)
    at_settling(monkeypatch, lambda _: taken.append(give(buffered(upload, 1))))
    run(buffered(upload, 0))
    assert taken == [False]


def test_a_worker_that_drains_takes_no_more(upload: Transfer, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bool] = []
    at_settling(monkeypatch, lambda order: taken.append(give(buffered(upload, order.chunks.start // 3 + 1))))
    run(buffered(upload, 0), draining=True)
    assert taken == [True, False]  # what it said it took is stored
    assert Segment.objects.count() == 2


def test_a_task_ends_after_a_number_of_runs_and_leaves_none_of_them(
    upload: Transfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[bool] = []
    monkeypatch.setattr(handover, "MOST_RUNS", 2)
    at_settling(monkeypatch, lambda order: taken.append(give(buffered(upload, order.chunks.start // 3 + 1))))
    run(buffered(upload, 0))
    assert taken == [True, False]
    assert Segment.objects.count() == 2


def test_a_run_that_fails_does_not_keep_the_others_from_being_stored(
    upload: Transfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = segments._commit

    def failing(order: StoreRequest, *args: Any) -> None:
        if order.chunks.start == 0:
            raise OSError("the database is gone")
        commit(order, *args)

    monkeypatch.setattr(segments, "_commit", failing)
    with pytest.raises(OSError, match="database"):
        run(buffered(upload, 0), buffered(upload, 1))
    assert Segment.objects.get().offset == buffered(upload, 1).offset


def test_a_redis_that_is_full_is_emptied_all_the_same(upload: Transfer) -> None:
    order = buffered(upload, 0)
    server = pool.client()
    server.config_set("maxmemory-policy", "noeviction")
    server.config_set("maxmemory", 1)
    refused = ("RPUSH", "full", b"")
    assert b"".join(chunks.fetch(order.payload, order.lease, order.chunks, refused)) == DATA[:RUN]
