"""Deleting a payload, transfer or user in the moment in which something is written that refers to it: both succeed.

SQLite has one writer at a time, and there is nothing to be seen of this.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, connections, models, transaction
from django.utils import timezone

from delivery.errors import Refused
from delivery.models import Address, ClientPosition, Event, Notice, Payload, Transfer
from delivery.policy import Quota
from delivery.transfers import deliveries, outcomes, quotas, sql, timeline
from delivery.transfers.deliveries import AcceptedDelivery
from tests.transfers.test_locks import HOLDER, alice, blocked, complete_payload, delivery, elsewhere

__all__ = ["alice"]  # a fixture

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor != "postgresql", reason="needs many writers: DATABASE_URL"),
]


@pytest.mark.parametrize("of", ["payload", "transfer", "user"])
def test_what_events_tell_of_is_deleted_while_they_are_written(alice: User, of: str) -> None:
    row = delivery(complete_payload(owner=alice), alice)
    timeline.write()  # what earlier tests noted
    gone: models.Model = {"payload": row.payload, "transfer": row, "user": alice}[of]
    with transaction.atomic():
        timeline.note("resumed", payload=row.payload_id, transfer=row.pk)
    with transaction.atomic():
        timeline.write()
        elsewhere(gone.delete).result(10)
    assert Event.objects.filter(kind="resumed").count() == 1


def test_a_delivery_is_accepted_while_it_is_deleted(alice: User) -> None:
    row = delivery(complete_payload(), alice)
    with transaction.atomic():
        assert deliveries.accept([AcceptedDelivery(row.pk, HOLDER, 3)]) == [""]
        deleting = blocked(Transfer.objects.filter(pk=row.pk).delete)
    deleting.result(10)
    assert not Transfer.objects.exists()
    assert not ClientPosition.objects.exists()


def test_a_delivery_is_declined_after_it_was_deleted(alice: User) -> None:
    row = delivery(complete_payload(), alice)
    with transaction.atomic():
        Transfer.objects.filter(pk=row.pk).delete()
        declining = blocked(deliveries.decline, row.pk, "phone")
    declining.result(10)
    assert not ClientPosition.objects.exists()


def test_a_payload_is_deleted_while_a_subscriber_gets_a_delivery_of_it(alice: User) -> None:
    payload = complete_payload()
    Address.objects.create(payload=payload, address="group:ops")
    with transaction.atomic():
        deliveries.catch_up(alice.pk, "group:ops")
        deleting = blocked(payload.delete)
    deleting.result(10)
    assert not Transfer.objects.exists()


def test_a_payload_that_has_just_been_deleted_is_not_delivered_to_a_subscriber(alice: User) -> None:
    payload = complete_payload()
    Address.objects.create(payload=payload, address="group:ops")
    with transaction.atomic():
        Payload.objects.filter(pk=payload.pk).delete()
        joining = blocked(deliveries.catch_up, alice.pk, "group:ops")
    joining.result(10)
    assert not Transfer.objects.exists()


def test_a_user_is_deleted_while_a_payload_for_them_completes(alice: User) -> None:
    with transaction.atomic():
        outcomes.create_for_users(complete_payload(), [alice.pk])
        deleting = blocked(alice.delete)
    deleting.result(10)
    assert not Transfer.objects.exists()
    assert not User.objects.exists()


def test_a_payload_completes_although_one_of_its_recipients_has_just_been_deleted(alice: User) -> None:
    bob, payload = User.objects.create_user("bob"), complete_payload()
    with transaction.atomic():
        User.objects.filter(pk=alice.pk).delete()
        completing_now = blocked(outcomes.create_for_users, payload, [alice.pk, bob.pk])
    completing_now.result(10)
    assert Transfer.objects.get().user == bob


@pytest.mark.usefixtures("valkey")
def test_users_are_deleted_while_they_send_and_receive() -> None:
    """Whoever deletes never fails: what others write meanwhile is deleted too, or fails for them."""
    end, failures = time.monotonic() + 3, list[BaseException]()
    users = [User.objects.create_user(f"user{number}") for number in range(40)]
    left = list(users)

    def send() -> None:
        try:
            while time.monotonic() < end and len(left) > 1:
                first, last = left[0], left[-1]
                try:
                    with transaction.atomic():
                        quotas.reserve(first, Quota(), 5, live=False)
                        payload = complete_payload(owner=first, reserved=5)
                        Notice.objects.create(signal="payload_stored", payload=payload, due_at=timezone.now())
                        outcomes.create_for_users(payload, [first.pk, last.pk])
                except (IntegrityError, Refused):
                    pass  # the sender was deleted
        except Exception as error:  # noqa: BLE001 - shown below
            failures.append(error)
        finally:
            connections.close_all()

    def delete() -> None:
        try:
            while time.monotonic() < end and left:
                User.objects.get(pk=left.pop(0).pk).delete()
        except Exception as error:  # noqa: BLE001 - shown below
            failures.append(error)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        for work in (send, send, send, delete):
            pool.submit(work)
    assert not failures, failures
    assert len(left) < 40


def test_what_is_kept_is_what_exists(alice: User) -> None:
    with transaction.atomic():
        assert sql.keep_rows(User, [alice.pk, alice.pk + 1]) == [alice.pk]
        assert sql.keep_rows(Payload, []) == []
