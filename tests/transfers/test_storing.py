"""Storing: a run moves from the buffer into Storage once, under its lease, and the position over all that joins on."""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.test import override_settings
from django.utils import timezone

from delivery.buffer import bulk, clients, digests, keys
from delivery.errors import StaleLease
from delivery.models import Direction, Payload, PayloadState, Segment, Transfer, TransferState, Usage
from delivery.protocol.frames import checksum
from delivery.storage import files
from delivery.transfers import hashing, storing
from delivery.transfers.storing import StoreOrder

CHUNK = 4096
RUN = 3 * CHUNK
DATA = os.urandom(3 * RUN)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def upload(valkey: None, tmp_path: Path) -> Iterator[Transfer]:
    local = {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": tmp_path}}
    with override_settings(STORAGES={"delivery": local}):
        owner = User.objects.create(username=f"u{uuid4().hex[:8]}")
        payload = Payload.objects.create(owner=owner, size=len(DATA), reserved=len(DATA), keep=True)
        yield Transfer.objects.create(
            direction=Direction.UPLOAD,
            payload=payload,
            user=owner,
            key=uuid4(),
            lease=2,
            waiting_for="worker",
            progressed_at=timezone.now(),
        )


def buffered(upload: Transfer, number: int, **changes: Any) -> StoreOrder:
    """Buffer the `number`-th run of an upload; return the order to store it."""
    start, data = 3 * number, DATA[number * RUN : (number + 1) * RUN]
    chunks = [data[at : at + CHUNK] for at in range(0, RUN, CHUNK)]
    names = keys.chunks(upload.payload_id, upload.lease, start, start + 3)
    bulk.run(
        *(("SET", name, chunk, "EX", 60) for name, chunk in zip(names, chunks, strict=True)),
        (
            *("SET", keys.checksums(upload.payload_id, upload.lease, start)),
            *(struct.pack(">3I", *map(checksum, chunks)), "EX", 60),
        ),
    )
    order = StoreOrder(
        transfer=upload.pk,
        payload=upload.payload_id,
        lease=upload.lease,
        start=start,
        end=start + 3,
        chunk_size=CHUNK,
        offset=number * RUN,
        length=RUN,
    )
    return dataclasses.replace(order, **changes)


def stored(upload: Transfer) -> bytes:
    pieces = []
    for segment in Segment.objects.filter(payload=upload.payload_id).order_by("offset"):
        pieces += files.read_bytes(segment.storage, segment.name, 0, segment.length)
    return b"".join(pieces)


def left(upload: Transfer) -> list[str]:
    """Return what is left of the chunks in the buffer."""
    return [key.decode() for key in clients.client().keys(f"*:c:{upload.payload_id.hex}:*")]


def test_runs_are_stored_in_any_order_and_the_position_moves_over_what_joins_on(upload: Transfer) -> None:
    for number, position in ((1, 0), (2, 0), (0, 3 * RUN)):
        storing.store(buffered(upload, number), worker="bee")
        upload.refresh_from_db()
        assert upload.position == position
    assert (upload.worker, upload.waiting_for) == ("bee", "")
    assert upload.expires_at is not None
    assert stored(upload) == DATA
    assert left(upload) == []


def test_what_is_stored_is_hashed_behind_it(upload: Transfer) -> None:
    for number in range(3):
        storing.store(buffered(upload, number), worker="bee")
    record = digests.take(upload.payload_id)
    if hashing.possible():
        assert record is not None
        hashed = hashing.Hashed.unpack(record)
        assert hashed is not None
        assert hashed.position == len(DATA)
    else:
        assert record is None


def test_a_run_that_is_stored_already_changes_nothing(upload: Transfer, tmp_path: Path) -> None:
    for _ in range(2):
        storing.store(buffered(upload, 1), worker="bee")
    storing.store(buffered(upload, 0), worker="bee")
    storing.store(buffered(upload, 0), worker="wasp")
    upload.refresh_from_db()
    assert (upload.position, upload.worker) == (2 * RUN, "bee")
    assert stored(upload) == DATA[: 2 * RUN]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2


@pytest.mark.parametrize("change", ["lease", "state"])
def test_a_run_of_an_earlier_lease_or_of_an_ended_upload_leaves_nothing(
    upload: Transfer, tmp_path: Path, change: str
) -> None:
    order = buffered(upload, 0)
    Transfer.objects.update(**{"lease": 3} if change == "lease" else {"state": TransferState.CANCELLED})
    storing.store(order, worker="bee")
    assert not Segment.objects.exists()
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    assert left(upload) == []


def test_what_overlaps_a_stored_segment_in_part_is_not_stored(upload: Transfer) -> None:
    Segment.objects.create(payload=upload.payload, storage="delivery", name="x", offset=RUN - 1, length=10)
    with pytest.raises(StaleLease):
        storing._room(buffered(upload, 0), 0)
    assert storing._room(buffered(upload, 2), 0) == [(RUN - 1, 10)]


def test_a_payload_of_unknown_size_is_charged_with_each_segment_and_learns_its_size(upload: Transfer) -> None:
    Payload.objects.update(size=None, reserved=0)
    Usage.objects.create(user=upload.user, stored=0, live=1, counted_at=timezone.now())
    storing.store(buffered(upload, 0), worker="bee")
    storing.store(buffered(upload, 1, ends=2 * RUN), worker="bee")
    payload = Payload.objects.get()
    assert (payload.size, payload.reserved, Usage.objects.get().stored) == (2 * RUN, 2 * RUN, 2 * RUN)


def test_a_payload_of_one_segment_is_completed_with_it(upload: Transfer) -> None:
    Payload.objects.update(size=RUN)
    storing.store(buffered(upload, 0, ends=RUN, completes=True), worker="bee")
    payload = Payload.objects.get()
    assert payload.state == PayloadState.COMPLETE
    assert digests.take(payload.pk) is None
