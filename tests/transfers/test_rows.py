"""Fixed statements write what the ORM would, and read it back in the same types."""

from __future__ import annotations

import datetime
import os
import time
import uuid

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction
from django.db.models import Q
from django.utils import timezone

from delivery.errors import Refused
from delivery.models import (
    ClientPosition,
    ClientState,
    Direction,
    Event,
    Payload,
    PayloadState,
    Transfer,
    Usage,
    new_id,
)
from delivery.policy import Quota
from delivery.transfers import deliveries, quotas, sql, timeline
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


def inserted(row: Payload) -> None:
    names = [field.name for field in Payload._meta.concrete_fields if field.name != "created_at"]
    fields = [Payload._meta.get_field(name) for name in names]
    with transaction.atomic():
        sql.Insert(Payload, *names, "created_at").run(
            [[*(getattr(row, field.attname) for field in fields), timezone.now()]]
        )


def test_an_inserted_row_is_what_was_given(alice: User) -> None:
    now = timezone.now()
    row = Payload(owner=alice, name="ü", meta={"a": "b"}, inline=os.urandom(100), expires_at=now, keep=True)
    inserted(row)
    found = Payload.objects.get(pk=row.pk)
    for field in Payload._meta.concrete_fields:
        if field.name != "created_at":
            assert getattr(found, field.attname) == getattr(row, field.attname), field.name
    assert found.created_at


def test_what_is_not_given_has_its_default(alice: User) -> None:
    sql.Insert(Payload, "id", "created_at").run([(new_id(), timezone.now())])
    found, made = Payload.objects.get(), Payload()
    for field in Payload._meta.concrete_fields:
        if field.name not in ("id", "created_at"):
            assert getattr(found, field.attname) == getattr(made, field.attname), field.name


@pytest.mark.parametrize("zone", [datetime.UTC, datetime.timezone(datetime.timedelta(hours=5, minutes=30))])
@pytest.mark.parametrize("microseconds", [0, 7, 999_999])
def test_a_moment_is_written_as_the_orm_writes_it(alice: User, zone: datetime.tzinfo, microseconds: int) -> None:
    moment = datetime.datetime(2026, 11, 26, 1, 2, 3, microseconds, zone)
    by_orm = Payload.objects.create(expires_at=moment)
    by_us = new_id()
    sql.Insert(Payload, "id", "created_at", "expires_at").run([(by_us, moment, moment)])
    with connection.cursor() as cursor:
        cursor.execute("SELECT DISTINCT expires_at FROM delivery_payload")
        assert len(cursor.fetchall()) == 1
    assert Payload.objects.get(pk=by_us).expires_at == Payload.objects.get(pk=by_orm.pk).expires_at == moment


def test_an_insert_of_the_same_key_is_refused(alice: User) -> None:
    row = Payload.objects.create(owner=alice)
    with pytest.raises(IntegrityError):
        inserted(row)


def test_an_insert_may_change_what_is_there(alice: User) -> None:
    row = delivery(alice)
    before = ClientPosition.objects.create(
        transfer=row, client="c", channel="here", session_order=7, updated_at=timezone.now()
    )
    insert = sql.Insert(
        ClientPosition,
        *("transfer", "client", "position", "updated_at"),
        unique=("transfer", "client"),
        update=("position", "channel"),
    )
    insert.run([(row.pk, "c", 3, timezone.now())])
    after = ClientPosition.objects.get()
    assert (after.pk, after.position, after.channel, after.session_order) == (before.pk, 3, "", 7)


def test_ids_rise() -> None:
    first = new_id()
    assert (first.version, first.variant) == (7, uuid.RFC_4122)
    time.sleep(0.002)
    assert new_id() > first


def test_events_of_what_is_gone_are_written_with_its_id(alice: User) -> None:
    row, gone = delivery(alice), uuid.uuid4()
    timeline.write()  # what other tests noted
    Event.objects.all().delete()
    timeline.note("delivered", transfer=row.pk, size=3)
    timeline.note("begun", payload=gone, transfer=row.pk)
    timeline.write()
    found = Event.objects.order_by("pk").values_list("kind", "transfer_id", "payload_id", "detail")
    assert list(found) == [("delivered", row.pk, None, {"size": 3}), ("begun", row.pk, gone, {})]


def test_events_go_with_what_they_tell_of(alice: User) -> None:
    row = delivery(alice)
    timeline.note("begun", payload=row.payload_id)
    timeline.note("delivered", transfer=row.pk)
    timeline.write()
    transfer, payload = row.pk, row.payload_id
    row.payload.delete()
    assert not Event.objects.filter(Q(transfer=transfer) | Q(payload=payload)).exists()


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


def test_events_of_what_is_gone_do_not_break_the_sites_own_transaction(alice: User) -> None:
    kept = delivery(alice)
    with transaction.atomic():
        timeline.note("offered", payload=kept.payload_id)
        timeline.note("offered", payload=new_id())
    with transaction.atomic():  # as in a view with ATOMIC_REQUESTS
        User.objects.create_user("bob")
        timeline.write()
    assert User.objects.filter(username="bob").exists()
    assert Event.objects.filter(kind="offered", payload=kept.payload_id).count() == 1
