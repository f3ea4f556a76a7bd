"""Fixed statements write what the ORM would, and read it back in the same types."""

from __future__ import annotations

import os
import uuid

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.utils import timezone

from delivery.errors import Refused
from delivery.models import ClientPosition, ClientState, Direction, Payload, PayloadState, Transfer, Usage
from delivery.policy import Quota
from delivery.transfers import deliveries, quotas, rows
from delivery.transfers.deliveries import Received

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def alice() -> User:
    return User.objects.create_user("alice")


def delivery(user: User) -> Transfer:
    payload = Payload.objects.create(owner=user, size=5, state=PayloadState.COMPLETE)
    return Transfer.objects.create(
        direction=Direction.DELIVERY, payload=payload, user=user, key=uuid.uuid4(), progressed_at=timezone.now()
    )


def test_an_inserted_row_is_what_was_given(alice: User) -> None:
    now = timezone.now()
    row = Payload(owner=alice, name="ü", meta={"a": "b"}, inline=os.urandom(100), expires_at=now, keep=True)
    with transaction.atomic():
        rows.insert(Payload, [row])
    found = Payload.objects.get(pk=row.pk)
    for field in Payload._meta.concrete_fields:
        assert getattr(found, field.attname) == getattr(row, field.attname), field.name
    assert found.created_at


def test_an_insert_of_the_same_key_is_refused(alice: User) -> None:
    row = Payload.objects.create(owner=alice)
    with pytest.raises(IntegrityError), transaction.atomic():
        rows.insert(Payload, [row])


def test_an_insert_may_change_what_is_there(alice: User) -> None:
    row = delivery(alice)
    before = ClientPosition.objects.create(transfer=row, client="c", channel="here", updated_at=timezone.now())
    new = ClientPosition(transfer=row, client="c", position=3, session_order=7, updated_at=timezone.now())
    rows.insert(ClientPosition, [new], unique=("transfer", "client"), update=("position", "channel"))
    after = ClientPosition.objects.get()
    assert (after.pk, after.position, after.channel, after.session_order) == (before.pk, 3, "", 0)


def test_the_first_client_serves_the_user_and_each_is_noted(alice: User) -> None:
    row, gone = delivery(alice), uuid.uuid4()
    deliveries.finish([Received(row.pk, "phone", 5), Received(gone, "phone", 5), Received(row.pk, "phone", 5)])
    served = Transfer.objects.get(pk=row.pk)
    assert (served.state, served.position) == ("done", 5)
    deliveries.finish([Received(row.pk, "laptop", 5)])
    assert Transfer.objects.get(pk=row.pk).ended_at == served.ended_at
    assert set(row.clients.values_list("client", "state")) == {
        ("phone", ClientState.DONE),
        ("laptop", ClientState.DONE),
    }


def test_a_delivery_that_was_cancelled_stays_so(alice: User) -> None:
    row = delivery(alice)
    Transfer.objects.filter(pk=row.pk).update(state="cancelled")
    deliveries.finish([Received(row.pk, "phone", 5)])
    assert Transfer.objects.get(pk=row.pk).state == "cancelled"


def test_a_quota_is_charged_up_to_its_edge(alice: User) -> None:
    quota = Quota(stored=10, live=1)
    quotas.reserve(alice, quota, 6, live=True)
    with pytest.raises(Refused):
        quotas.reserve(alice, quota, 5, live=False)
    with pytest.raises(Refused):
        quotas.reserve(alice, quota, 1, live=True)
    quotas.reserve(alice, quota, 4, live=False)
    assert list(Usage.objects.values_list("stored", "live")) == [(10, 1)]


def test_a_quota_without_an_edge_can_be_charged(alice: User) -> None:
    quotas.reserve(alice, Quota(stored=2**70, live=2**40, in_flight=2**90), 6, live=True)
    assert Usage.objects.get().stored == 6
