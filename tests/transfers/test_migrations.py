"""Migrations forwards and back again, on the database that the tests run with, with rows in it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest
from django.core.management import call_command
from django.db import connection
from django.utils import timezone

from delivery.models import Event, Payload

pytestmark = pytest.mark.django_db(transaction=True)
Migrate = Callable[[str], None]


@pytest.fixture
def migrate() -> Iterator[Migrate]:
    def to(name: str) -> None:
        call_command("migrate", "delivery", name, verbosity=0)

    yield to
    call_command("migrate", "delivery", verbosity=0)


def _constraints() -> set[str]:
    with connection.cursor() as cursor:
        found = connection.introspection.get_constraints(cursor, Event._meta.db_table).values()
    return {one["columns"][0] for one in found if one["foreign_key"]}


def test_events_get_their_constraints_back_and_lose_what_these_would_refuse(migrate: Migrate) -> None:
    payload = Payload.objects.create(size=5)
    Event.objects.all().delete()
    kept = Event.objects.create(kind="begun", at=timezone.now(), payload=payload)
    Event.objects.create(kind="begun", at=timezone.now(), payload_id=uuid.uuid4())
    Event.objects.create(kind="begun", at=timezone.now(), payload=payload, transfer_id=uuid.uuid4())
    assert _constraints() == set()
    migrate("0002")
    assert _constraints() == {"payload_id", "transfer_id"}
    assert list(Event.objects.values_list("pk", flat=True)) == [kept.pk]
    migrate("0003")
    assert _constraints() == set()
    assert list(Event.objects.values_list("pk", flat=True)) == [kept.pk]
