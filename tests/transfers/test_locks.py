"""Two who change the same rows in the same moment: neither is broken off, and the second sees what the first did.

SQLite has one writer at a time, and there is nothing to be seen of this.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, connections, transaction
from django.utils import timezone

from delivery.errors import StaleLease
from delivery.models import ClientPosition, Direction, Payload, PayloadState, Segment, Transfer, Usage
from delivery.policy import Quota
from delivery.protocol.messages import UploadOffer
from delivery.transfers import admission, cleanup, deliveries, inline, outcomes, quotas, sql, uploads
from delivery.transfers.admission import Admission
from delivery.transfers.deliveries import AcceptedDelivery, Received
from delivery.transfers.holders import Holder
from delivery.transfers.inline import SmallOffer
from tests.launch.live import wait_until

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor != "postgresql", reason="needs many writers: DATABASE_URL"),
]
HOLDER = Holder(0, "laptop", "session", 1, "channel")
ADMITTED = Admission((), 1_000_000, Quota(), ())


@pytest.fixture
def alice() -> User:
    return User.objects.create_user("alice")


@pytest.fixture
def upload(alice: User) -> Transfer:
    payload = Payload.objects.create(owner=alice, size=5, reserved=5, keep=True)
    Usage.objects.create(user=alice, stored=5, live=1, counted_at=timezone.now())
    return Transfer.objects.create(
        direction=Direction.UPLOAD,
        payload=payload,
        user=alice,
        key=uuid.uuid4(),
        lease=1,
        position=5,
        progressed_at=timezone.now(),
    )


def delivery(payload: Payload, user: User) -> Transfer:
    row = outcomes.delivery_of(payload, user.pk)
    row.save(force_insert=True)
    return row


def complete_payload(**fields: Any) -> Payload:
    return Payload.objects.create(size=5, state=PayloadState.COMPLETE, sha256="0" * 64, **fields)


def elsewhere(function: Callable[..., Any], *arguments: Any, **options: Any) -> Future[Any]:
    """Call `function` in another thread."""

    def call() -> Any:
        try:
            return function(*arguments, **options)
        finally:
            connections.close_all()

    pool = ThreadPoolExecutor(1)
    future = pool.submit(call)
    pool.shutdown(wait=False)
    return future


def blocked(function: Callable[..., Any], *arguments: Any, **options: Any) -> Future[Any]:
    """Call `function` in another thread; return once it waits for a lock that we hold."""
    future = elsewhere(function, *arguments, **options)
    wait_until(lambda: future.done() or _blocks(), what="blocked transaction")
    assert not future.done(), future.result()
    return future


def _blocks() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"
        )
        return bool(cursor.fetchone()[0])


def test_a_cancel_waits_for_a_segment_that_is_being_committed(upload: Transfer) -> None:
    with transaction.atomic():
        assert uploads.lock_under(upload.payload_id, upload.pk, 1)[:2] == (5, 5)
        cancelling = blocked(outcomes.cancel_payload, upload.payload_id, by="")
        Segment.objects.create(payload_id=upload.payload_id, storage="delivery", name="x", offset=0, length=5)
        upload.save(update_fields=["position"])
    assert cancelling.result(10)
    assert not Segment.objects.exists()


@pytest.mark.parametrize("whole", [True, False], ids=["both rows", "what each task needs"])
def test_a_transfer_is_not_locked_before_its_payload(upload: Transfer, whole: bool) -> None:
    def look() -> int:
        with transaction.atomic():
            if whole:
                return uploads.locked_under(upload.pk, 1).position
            return uploads.lock_under(upload.payload_id, upload.pk, 1)[0]

    with transaction.atomic():
        sql.lock_in_order(Payload.objects.all())
        looking = blocked(look)
        assert Transfer.objects.select_for_update(nowait=True).get() == upload
        Transfer.objects.update(position=4)
    assert looking.result(10) == 4


def test_a_lease_that_is_raised_meanwhile_is_noticed(upload: Transfer) -> None:
    def lock() -> None:
        with transaction.atomic():
            uploads.lock_under(upload.payload_id, upload.pk, 1)

    with transaction.atomic():
        uploads.locked_under(upload.pk, 1)
        locking = blocked(lock)
        Transfer.objects.update(lease=2)
    with pytest.raises(StaleLease):
        locking.result(10)


def test_an_upload_that_completes_while_it_is_offered_again_is_finished(alice: User, upload: Transfer) -> None:
    offer = UploadOffer(transfer=str(upload.key), handle=1, name="x", size=5, chunk_size=4096)
    with transaction.atomic():
        assert outcomes.complete(upload.payload_id, "0" * 64)
        opening = blocked(uploads.open_upload, alice, HOLDER, offer, ADMITTED, workers=True)
    assert opening.result(10) == uploads.FinishedUpload(upload.payload_id, 5, "0" * 64)


def test_what_was_received_while_its_payload_ends_stays_received(alice: User) -> None:
    row = delivery(complete_payload(), alice)
    with transaction.atomic():
        deliveries.finish([Received(row.pk, "phone", 5)])
        expiring = blocked(outcomes.expire_payload, row.payload_id, by="")
    assert expiring.result(10)
    row.refresh_from_db()
    assert (row.state, row.position) == ("done", 5)


def test_positions_are_noted_while_deliveries_finish(alice: User) -> None:
    rows = sorted((delivery(complete_payload(), alice) for _ in range(2)), key=lambda row: row.pk)
    for row in rows:
        ClientPosition.objects.create(transfer=row, client="phone", updated_at=timezone.now())
    with transaction.atomic():
        deliveries.finish([Received(rows[1].pk, "laptop", 5)])
        noting = blocked(deliveries.note_positions, {(row.pk, "phone"): 3 for row in rows})
        deliveries.finish([Received(rows[1].pk, "phone", 5)])
    noting.result(10)
    assert Transfer.objects.get(pk=rows[0].pk).position == 3


def test_a_decline_waits_for_who_reads_positions_to_write_them(alice: User) -> None:
    row = delivery(complete_payload(), alice)
    ClientPosition.objects.create(transfer=row, client=HOLDER.client, updated_at=timezone.now())
    with transaction.atomic():
        sql.lock_in_order(Transfer.objects.filter(pk=row.pk))
        declining = blocked(deliveries.decline, row.pk, HOLDER.client)
        assert deliveries.accept([AcceptedDelivery(row.pk, HOLDER, 3)]) == [""]
    declining.result(10)
    assert ClientPosition.objects.get(transfer=row).state == "declined"


def test_events_are_written_while_their_payload_is_changed(upload: Transfer) -> None:
    with transaction.atomic():
        uploads.locked_under(upload.pk, 1)
        writing = elsewhere(upload.payload.events.create, kind="begun", at=timezone.now(), transfer=upload)
        assert writing.result(10).pk


def test_batches_with_the_same_users_in_another_order_wait_for_each_other(
    alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob = User.objects.create_user("bob")
    for user in (alice, bob):
        quotas.reserve(user, Quota(), 0, live=False)
    reserve, started = quotas.reserve, []

    def reserve_and_meet(*arguments: Any, **options: Any) -> None:
        reserve(*arguments, **options)
        if not started:
            started.append(None)
            started[0] = blocked(inline.store_whole, [_small(bob), _small(alice)])

    monkeypatch.setattr(quotas, "reserve", reserve_and_meet)
    first = inline.store_whole([_small(alice), _small(bob)])
    second = started[0].result(10)
    assert None not in first.outcomes + second.outcomes
    assert set(Usage.objects.values_list("stored", flat=True)) == {2 * (5 + admission.overhead("x", {}))}


def _small(user: User) -> SmallOffer:
    offer = UploadOffer(transfer=str(uuid.uuid4()), handle=1, name="x", size=5, chunk_size=4096)
    return SmallOffer(user, HOLDER, offer, b"12345", frozenset(), ADMITTED)


def test_forgetting_a_user_waits_for_a_segment_and_leaves_nothing(alice: User, upload: Transfer) -> None:
    Payload.objects.update(keep=False)
    payload = complete_payload(owner=alice)
    delivery(payload, alice)
    with transaction.atomic():
        row = uploads.locked_under(upload.pk, 1)
        forgetting_all = blocked(cleanup.forget_user, alice.pk, everything=True)
        assert quotas.grow(row.payload, Quota().stored, 3)
    assert forgetting_all.result(10).ended == 2
    assert not Payload.objects.exists()
