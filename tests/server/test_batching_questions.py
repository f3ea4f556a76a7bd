"""What many connections ask at once is asked once; what waits for whom, and who came first."""

from __future__ import annotations

import asyncio
import threading
import uuid
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import override_settings
from django.utils import timezone

from delivery.buffer import pool
from delivery.errors import BufferUnavailable
from delivery.models import ClientPosition, ClientState, Direction, Payload, PayloadState, Transfer, TransferState
from delivery.policy import DefaultPolicy, Quota
from delivery.server.batching import LANES, Questions
from delivery.transfers import deliveries


class Threads:
    """Stands where a process would: runs what talks to the database in threads, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    async def db(self, function: Any, *arguments: Any) -> Any:
        self.calls += 1
        return await asyncio.to_thread(function, *arguments)


@pytest.fixture
def threads() -> Threads:
    return Threads()


@pytest.fixture
async def questions(threads: Threads) -> Any:
    found = Questions(threads)  # type: ignore[arg-type]
    yield found
    await found.stop()


class SomePolicy(DefaultPolicy):
    held = threading.Event()

    def quota(self, user: Any) -> Quota:
        if user == "fails":
            raise LookupError(user)
        if user == "slow":
            self.held.wait(10)
        return Quota(connections=len(user))


@pytest.fixture
def some_policy() -> Any:
    SomePolicy.held.clear()
    with override_settings(DELIVERY={"POLICY": f"{__name__}.SomePolicy"}):
        yield
    SomePolicy.held.set()


async def test_what_is_asked_meanwhile_is_asked_together(
    questions: Questions, threads: Threads, some_policy: None
) -> None:
    users = ["a" * number for number in range(1, 51)]
    quotas = await asyncio.gather(*(questions.quota_of(user) for user in users))
    assert [quota.connections for quota in quotas] == list(range(1, 51))
    assert threads.calls <= LANES


async def test_one_that_fails_fails_alone(questions: Questions, some_policy: None) -> None:
    found = await asyncio.gather(*(questions.quota_of(user) for user in ("a", "fails", "b")), return_exceptions=True)
    assert found[0] == found[2] == Quota(connections=1)
    assert isinstance(found[1], LookupError)


async def test_one_that_is_slow_does_not_hold_up_the_next(
    questions: Questions, threads: Threads, some_policy: None
) -> None:
    slow = asyncio.ensure_future(questions.quota_of("slow"))
    while not threads.calls:
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert (await questions.quota_of("next")).connections == 4
    assert not slow.done()
    SomePolicy.held.set()
    assert (await slow).connections == 4


async def test_orders_rise_even_where_the_clock_stands(questions: Questions, monkeypatch: pytest.MonkeyPatch) -> None:
    async def clock() -> int:
        return 1_000_000

    monkeypatch.setattr(pool, "aclock", clock)
    orders = await asyncio.gather(*(questions.order() for _ in range(100)))
    orders.append(await questions.order())
    assert orders == list(range(1_000_000, 1_000_101))


async def test_a_redis_that_is_away_is_told_to_all(questions: Questions, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away() -> int:
        raise BufferUnavailable("away")

    monkeypatch.setattr(pool, "aclock", away)
    found = await asyncio.gather(*(questions.order() for _ in range(3)), return_exceptions=True)
    assert [type(one) for one in found] == [BufferUnavailable] * 3


def a_delivery(user: Any, state: TransferState = TransferState.LIVE) -> Transfer:
    now = timezone.now()
    payload = Payload.objects.create(
        id=uuid.uuid4(), name="x", size=1, inline=b"x", state=PayloadState.COMPLETE, completed_at=now
    )
    return Transfer.objects.create(
        id=uuid.uuid4(),
        key=uuid.uuid4(),
        payload=payload,
        user=user,
        direction=Direction.DELIVERY,
        state=state,
        progressed_at=now,
    )


@pytest.mark.django_db
def test_nothing_that_waits_is_overlooked(django_assert_num_queries: Any) -> None:
    people = [get_user_model().objects.create(username=name) for name in ("live", "begun", "declined", "done", "none")]
    live, begun, declined, done, none = people
    a_delivery(live)
    now = timezone.now()
    for user, state in ((begun, ClientState.OPEN), (declined, ClientState.DECLINED), (done, ClientState.DONE)):
        ClientPosition.objects.create(
            transfer=a_delivery(user, TransferState.DONE), client=user.username, state=state, updated_at=now
        )
    askers = [(one.pk, one.username) for one in people]
    with django_assert_num_queries(2):
        found = deliveries.may_wait(askers)
    assert found == [True, True, False, False, False]
    for (user, client), waits in zip(askers, found, strict=True):
        rows = deliveries.waiting(user, client, known=(), most=16, begun=True)
        assert waits or not rows
    assert deliveries.may_wait([(none.pk, "begun")]) == [True]  # not for certain: a client id of somebody else's
