"""A connection that is lost at COMMIT does not tell whether the rows are there. If they are, so must be their files.

`make faults` found uploads that could not be sealed: their rows were committed, and the task that was not told so had
deleted their files.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError
from django.test import override_settings
from django.utils import timezone

from delivery import deliver
from delivery.buffer import keys, pool
from delivery.models import Direction, Payload, Segment, Transfer
from delivery.protocol.storing import ChunkRange
from delivery.transfers import cleanup, outcomes, segments
from delivery.transfers.segments import StoreRequest
from tests.commits import lost_at_commit

SIZE = 300_000
DATA = os.urandom(SIZE)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def folder(valkey: None, tmp_path: Path) -> Iterator[Path]:
    local = {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": tmp_path}}
    with override_settings(STORAGES={"delivery": local}):
        yield tmp_path


def files_in(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def buffered() -> StoreRequest:
    """Return the order to store the first of two chunks of an upload, which is in the buffer."""
    owner = User.objects.create(username=f"u{uuid4().hex[:8]}")
    payload = Payload.objects.create(owner=owner, size=2 * SIZE)
    row = Transfer.objects.create(
        direction=Direction.UPLOAD, payload=payload, user=owner, key=uuid4(), lease=1, progressed_at=timezone.now()
    )
    pool.client().set(keys.chunk(payload.pk, 1, 0), DATA, ex=60)
    return StoreRequest(row.pk, payload.pk, lease=1, chunks=ChunkRange(0, 1), chunk_size=SIZE, offset=0, length=SIZE)


def test_a_segment_that_was_committed_after_all_keeps_its_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = buffered()
    with lost_at_commit(monkeypatch, committed=True), pytest.raises(OperationalError):
        segments.store(order, worker="test")
    assert Transfer.objects.get(pk=order.transfer).position == SIZE
    assert files_in(folder) == [Segment.objects.get(payload=order.payload).name]


def test_a_segment_that_was_not_committed_is_stored_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = buffered()
    with lost_at_commit(monkeypatch, committed=False), pytest.raises(OperationalError):
        segments.store(order, worker="test")
    assert not Segment.objects.exists()
    segments.store(order, worker="test")
    assert len(files_in(folder)) == 2
    outcomes.cancel_payload(order.payload, by="")
    assert cleanup.delete_orphans(order.payload) == 1
    assert files_in(folder) == []


def test_a_delivery_that_was_committed_after_all_keeps_its_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lost_at_commit(monkeypatch, committed=True), pytest.raises(OperationalError):
        deliver(DATA, to=User.objects.none(), name="kept.bin")
    gc.collect()
    payload = Payload.objects.get(name="kept.bin")
    with payload.open() as file:
        assert file.read() == DATA
