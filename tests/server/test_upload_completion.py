"""Whoever waits for a digest asks again, and soon enough that a killed worker costs no more than 10 s."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from delivery.buffer import leases
from delivery.models import Payload, PayloadState
from delivery.server import upload
from delivery.transfers import digests

PROMISED_SECONDS = 10.0
DATA = b"sealed by somebody else"


class Asking:
    """A process that notes when a task was asked for, and in whose database nothing ever gets finished."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.asked_at: list[float] = []
        self._now = now

    async def db(self, function: Any, *arguments: Any) -> Any:
        return (PayloadState.SEALING, 0, "", "") if function is upload.outcomes.outcome else None

    async def publish(self, *arguments: Any, **named: Any) -> None:
        self.asked_at.append(self._now())


async def _longest_wait(monkeypatch: pytest.MonkeyPatch) -> float:
    clock = [0.0]
    monkeypatch.setattr(upload.time, "monotonic", lambda: clock[0])
    process = Asking(lambda: clock[0])
    receiver: Any = SimpleNamespace(expected_digests=set, size=len(DATA))
    waiting = upload.UploadCompletion(process, receiver, SimpleNamespace(payload=uuid4(), transfer=uuid4()))  # type: ignore[arg-type]
    while clock[0] < 60:
        await waiting.step(1)
        clock[0] += 0.1
    monkeypatch.undo()
    return max(after - before for before, after in zip(process.asked_at, process.asked_at[1:], strict=False))


@pytest.fixture
def being_sealed() -> Payload:
    owner = User.objects.create(username=f"u{uuid4().hex[:8]}")
    return Payload.objects.create(
        owner=owner,
        inline=DATA,
        size=len(DATA),
        state=PayloadState.SEALING,
        expected_sha256=hashlib.sha256(DATA).hexdigest(),
        sealer="somebody",
    )


def _state_after(payload: Payload, seconds: float) -> str:
    """Return the state once a task came `seconds` after the last heartbeat of the other one."""
    payload.sealing_at = timezone.now() - datetime.timedelta(seconds=seconds)
    payload.save()
    digests.seal(payload.pk, worker="test")
    payload.refresh_from_db()
    return str(payload.state)


async def test_a_killed_sealing_is_taken_up_within_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert digests.DEAD_AFTER_SECONDS + await _longest_wait(monkeypatch) < PROMISED_SECONDS


@pytest.mark.django_db(transaction=True)
def test_a_sealing_whose_heartbeat_stopped_is_taken_up(valkey: None, being_sealed: Payload) -> None:
    assert _state_after(being_sealed, 3 * digests.HEARTBEAT_SECONDS) == "sealing"
    assert _state_after(being_sealed, digests.DEAD_AFTER_SECONDS + 0.1) == "complete"


@pytest.mark.django_db(transaction=True)
def test_a_sealing_that_is_taken_up_waits_for_nothing_that_the_dead_one_held(
    valkey: None, being_sealed: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests.time, "sleep", lambda _seconds: pytest.fail("waited for the dead"))
    leases.hold_digest(being_sealed.pk)
    assert _state_after(being_sealed, digests.DEAD_AFTER_SECONDS + 0.1) == "complete"
