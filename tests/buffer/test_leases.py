"""A run is handed over only where a task will look for it, and taken once."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from delivery.buffer import exchange, keys, leases, pool

PAYLOAD = uuid4()


@pytest.fixture
async def taker(valkey: None) -> Any:
    yield lambda: exchange.run_commands(*leases.open_handover_commands(PAYLOAD, 1))
    await pool.aclose()


async def test_nobody_takes_what_no_task_waits_for(taker: Any) -> None:
    assert not await leases.ahand_over(PAYLOAD, 1, b"run")
    assert leases.take_handed_over(PAYLOAD, 1) == []


async def test_what_was_handed_over_is_taken_once_and_in_order(taker: Any) -> None:
    taker()
    assert [await leases.ahand_over(PAYLOAD, 1, run) for run in (b"a", b"b")] == [True, True]
    assert leases.take_handed_over(PAYLOAD, 1) == [b"a", b"b"]
    assert not await leases.ahand_over(PAYLOAD, 1, b"c")
    assert leases.take_handed_over(PAYLOAD, 1) == []


async def test_who_takes_last_leaves_nothing_behind_whoever_said_so_first(taker: Any) -> None:
    taker()
    taker()
    assert await leases.ahand_over(PAYLOAD, 1, b"a")
    assert leases.take_handed_over(PAYLOAD, 1) == [b"a"]
    assert not await leases.ahand_over(PAYLOAD, 1, b"b")  # the other task looks again, and finds nothing
    assert leases.take_handed_over(PAYLOAD, 1) == []


async def test_another_lease_is_another_upload(taker: Any) -> None:
    taker()
    assert not await leases.ahand_over(PAYLOAD, 2, b"run")


async def test_a_task_that_was_killed_is_not_waited_for_long(taker: Any) -> None:
    taker()
    assert 0 < pool.client().ttl(keys.handover(PAYLOAD, 1)) <= leases.HANDOVER_SECONDS
