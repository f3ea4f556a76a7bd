"""The site's signals: effects in its own database once, whatever a handler raises.

Here the test stands in for the worker: handlers are connected in this process, with a database of its own.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.db import transaction
from django.utils import timezone

from delivery import deliver, signals
from delivery.models import Direction, Notice, Payload, Transfer
from delivery.transfers import cancel_payload, deliveries, expire_payload, outbox
from tests.stack import Stack, services_of

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def services(shipped: Stack, transactional_db: None) -> Iterator[None]:
    with services_of(shipped):
        yield


@pytest.fixture
def alice() -> User:
    return User.objects.create_user("alice")


@pytest.fixture
def listen() -> Iterator[Callable[..., None]]:
    """Return a function that connects a handler for the length of the test."""
    connected = []

    def listen(signal: Any, handler: Any) -> None:
        signal.connect(handler, weak=False)
        connected.append((signal, handler))

    yield listen
    for signal, handler in connected:
        signal.disconnect(handler)


def announce_all() -> None:
    """Do what the workers' tasks would: announce every notice, due or not."""
    for pk in list(Notice.objects.values_list("pk", flat=True)):
        outbox.announce(pk)


def test_payload_stored_comes_once_with_the_payload(listen: Callable[..., None]) -> None:
    heard = []

    def handler(payload: Payload, **_: Any) -> None:
        heard.append((payload.pk, payload.state, payload.open().read()))

    listen(signals.payload_stored, handler)
    payload = deliver(b"x")
    assert heard == []  # not in the process that delivers
    announce_all()
    announce_all()
    assert heard == [(payload.pk, "complete", b"x")]
    assert not Notice.objects.exists()


def test_without_a_handler_nothing_is_written_down() -> None:
    deliver(b"x")
    assert not Notice.objects.exists()


def test_a_handler_that_raises_is_rolled_back_and_tried_again(listen: Callable[..., None]) -> None:
    fails = [True, True, False]

    def handler(payload: Payload, **_: Any) -> None:
        Group.objects.create(name=str(payload.pk))
        if fails.pop(0):
            raise LookupError("not yet")

    listen(signals.payload_stored, handler)
    payload = deliver(b"x")
    announce_all()
    notice = Notice.objects.get()
    assert (notice.attempts, notice.error) == (1, "LookupError")
    assert notice.due_at > timezone.now()
    assert not Group.objects.exists()
    first_wait = notice.due_at
    announce_all()
    notice.refresh_from_db()
    assert notice.attempts == 2
    assert notice.due_at > first_wait
    announce_all()
    assert Group.objects.get().name == str(payload.pk)
    assert not Notice.objects.exists()


def test_a_handler_that_raises_does_not_keep_others_from_hearing(listen: Callable[..., None]) -> None:
    heard = []

    def broken(**_: Any) -> None:
        raise LookupError

    def sound(payload: Payload, **_: Any) -> None:
        heard.append(payload.pk)

    listen(signals.payload_stored, broken)
    listen(signals.payload_stored, sound)
    payload = deliver(b"x")
    announce_all()
    announce_all()
    assert heard == [payload.pk]  # once, although the notice was announced twice
    assert Notice.objects.get().handled == [f"{sound.__module__}.{sound.__qualname__}"]


def test_the_payload_is_complete_whatever_handlers_do(listen: Callable[..., None]) -> None:
    def broken(**_: Any) -> None:
        raise LookupError

    listen(signals.payload_stored, broken)
    payload = deliver(b"x")
    announce_all()
    payload.refresh_from_db()
    assert payload.state == "complete"


def test_an_async_handler_is_awaited(listen: Callable[..., None]) -> None:
    heard = []

    async def handler(payload: Payload, **_: Any) -> None:
        await Group.objects.acreate(name=str(payload.pk))
        heard.append(payload.pk)

    listen(signals.payload_stored, handler)
    payload = deliver(b"x")
    announce_all()
    assert heard == [payload.pk]
    assert Group.objects.get().name == str(payload.pk)


def test_a_rollback_takes_the_notice_with_it(listen: Callable[..., None]) -> None:
    heard = []
    listen(signals.payload_stored, lambda payload, **_: heard.append(payload.pk))
    with transaction.atomic():
        deliver(b"x")
        transaction.set_rollback(True)
    announce_all()
    assert heard == []


def test_payload_delivered_comes_with_the_first_client(listen: Callable[..., None], alice: User) -> None:
    heard = []

    def handler(payload: Payload, transfer: Transfer, **_: Any) -> None:
        heard.append((payload.pk, transfer.user_id))

    listen(signals.payload_delivered, handler)
    payload = deliver(b"x", alice)
    row = payload.deliveries.get()
    for client in ("phone", "laptop"):
        deliveries.finish([deliveries.Received(row.pk, client, 1)])
    announce_all()
    assert heard == [(payload.pk, alice.pk)]


def test_payload_expired_comes_for_what_was_complete(listen: Callable[..., None], alice: User) -> None:
    heard = []

    def handler(payload: Payload, **_: Any) -> None:
        heard.append(payload.pk)

    listen(signals.payload_expired, handler)
    payload = deliver(b"x", alice)
    assert expire_payload(payload.pk, by="")
    assert not expire_payload(payload.pk, by="")
    announce_all()
    assert heard == [payload.pk]


def test_transfer_failed_comes_with_the_code(listen: Callable[..., None], alice: User) -> None:
    heard = []

    def handler(transfer: Transfer, **_: Any) -> None:
        heard.append((transfer.pk, transfer.failure))

    listen(signals.transfer_failed, handler)
    payload = Payload.objects.create(name="half")
    upload = Transfer.objects.create(
        direction=Direction.UPLOAD, payload=payload, user=alice, key=uuid.uuid4(), progressed_at=timezone.now()
    )
    cancel_payload(payload.pk, by="")
    announce_all()
    assert heard == [(upload.pk, "cancelled")]
