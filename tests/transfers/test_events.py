"""Events are written in batches, by threads that do not wait for each other."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.contrib.auth.models import User
from django.db import connections, transaction

from delivery.models import Event, Payload
from delivery.transfers import timeline

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def payload() -> Iterator[Payload]:
    timeline.write()
    yield Payload.objects.create(owner=User.objects.create_user("alice"), size=5)
    timeline.write()


def _noted_and_written(payload: uuid.UUID) -> None:
    try:
        timeline.note("stored", payload=payload)
        timeline.write()
    finally:
        connections.close_all()


def test_a_transaction_does_not_wait_for_a_thread_that_waits_for_it(payload: Payload) -> None:
    """A handler of the site's, inside its transaction, delivers something while another task of the worker ends."""
    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            Payload.objects.filter(pk=payload.pk).update(name="locked")
            other = pool.submit(_noted_and_written, payload.pk)
            time.sleep(0.3)  # on SQLite it waits for the end of this transaction now
            began = time.monotonic()
            timeline.write()
            assert time.monotonic() - began < 5
        other.result(timeout=30)
    assert Event.objects.filter(payload=payload.pk, kind="stored").count() == 1


def test_nothing_is_lost_or_doubled_by_threads_that_write_at_once(payload: Payload) -> None:
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(_noted_and_written, payload.pk) for _ in range(40)]:
            done.result(timeout=30)
    timeline.write()
    assert Event.objects.filter(payload=payload.pk, kind="stored").count() == 40


def test_what_a_rolled_back_transaction_noted_is_not_written(payload: Payload) -> None:
    with transaction.atomic():
        timeline.note("stored", payload=payload.pk)
        transaction.set_rollback(True)
    timeline.write()
    assert not Event.objects.filter(payload=payload.pk).exists()


def test_what_a_peer_repeats_for_ever_is_bounded_and_the_newest_stay(payload: Payload) -> None:
    transfer = uuid.uuid4()
    timeline.note("begun", payload=payload.pk, transfer=transfer)
    for lease in range(250):
        timeline.note("resumed", payload=payload.pk, transfer=transfer, lease=lease)
        timeline.note("detached", transfer=transfer)
        if lease % 40 == 0:
            timeline.write()
    timeline.write()
    kept = Event.objects.filter(transfer=transfer).order_by("pk")
    assert kept.count() == timeline.MOST_REPEATED + 1
    assert kept[0].kind == "begun"
    assert [one.detail["lease"] for one in kept if one.kind == "resumed"] == list(range(200, 250))


def test_repeated_events_of_a_payload_alone_are_bounded_too(payload: Payload) -> None:
    for _ in range(3):
        for _ in range(timeline.MOST_REPEATED):
            timeline.note("unsealed", payload=payload.pk)
        timeline.write()
    assert Event.objects.filter(payload=payload.pk).count() == timeline.MOST_REPEATED
