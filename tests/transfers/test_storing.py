"""Storing: a run moves from the buffer into Storage once, under its lease, and the position over all that joins on."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import override_settings
from django.utils import timezone

from delivery import policy
from delivery.buffer import exchange, keys, leases, pool
from delivery.errors import StaleLease
from delivery.models import (
    ClientPosition,
    Direction,
    Payload,
    PayloadState,
    Segment,
    Transfer,
    TransferState,
    Usage,
    WaitingFor,
)
from delivery.policy import DefaultPolicy
from delivery.protocol.frames import checksum
from delivery.protocol.storing import ChunkRange
from delivery.storage import files
from delivery.transfers import deliveries, digests, inline, segments, uploads
from delivery.transfers.segments import StoreRequest

CHUNK = 4096
RUN = 3 * CHUNK
DATA = os.urandom(3 * RUN)

SHA256 = hashlib.sha256(DATA).hexdigest()

pytestmark = pytest.mark.django_db(transaction=True)
needs_rehashes = pytest.mark.skipif(not digests.can_hash_ahead(), reason="rehashes has no wheel here")


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
            channel="channel",
            waiting_for="worker",
            progressed_at=timezone.now(),
        )


def buffered(upload: Transfer, number: int, **changes: Any) -> StoreRequest:
    """Buffer the `number`-th run of an upload; return the order to store it."""
    start, data = 3 * number, DATA[number * RUN : (number + 1) * RUN]
    chunks = [data[at : at + CHUNK] for at in range(0, RUN, CHUNK)]
    names = keys.chunks(upload.payload_id, upload.lease, start, start + 3)
    exchange.run_commands(
        *(("SET", name, chunk, "EX", 60) for name, chunk in zip(names, chunks, strict=True)),
        (
            *("SET", keys.checksums(upload.payload_id, upload.lease, start)),
            *(struct.pack(">3I", *map(checksum, chunks)), "EX", 60),
        ),
    )
    order = StoreRequest(
        transfer=upload.pk,
        payload=upload.payload_id,
        lease=upload.lease,
        chunks=ChunkRange(start, start + 3),
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
    return [key.decode() for key in pool.client().keys(f"*:c:{upload.payload_id.hex}:*")]


def test_runs_are_stored_in_any_order_and_the_position_moves_over_what_joins_on(upload: Transfer) -> None:
    for number, position in ((1, 0), (2, 0), (0, 3 * RUN)):
        segments.store(buffered(upload, number), worker="bee")
        upload.refresh_from_db()
        assert upload.position == position
    assert (upload.worker, upload.waiting_for) == ("bee", "")
    assert upload.expires_at is not None
    assert stored(upload) == DATA
    assert left(upload) == []


def test_an_upload_that_nobody_holds_waits_for_its_client_although_it_moves(upload: Transfer) -> None:
    """A store that was on its way commits after the connection has gone."""
    Transfer.objects.update(session="session")
    uploads.DetachedUpload(upload.pk, "session", upload.lease, 1006).note()
    segments.store(buffered(upload, 0), worker="bee")
    uploads.waiting(upload.pk, upload.lease, WaitingFor.WORKER)  # asked before, noted after
    upload.refresh_from_db()
    assert (upload.position, upload.waiting_for) == (RUN, "client")


def test_a_small_upload_that_nobody_holds_waits_for_its_client(upload: Transfer) -> None:
    Payload.objects.update(inline=b"")
    Transfer.objects.update(session="session")
    uploads.DetachedUpload(upload.pk, "session", upload.lease, 1006).note()
    inline.store(upload.pk, upload.lease, 0, b"12345")
    upload.refresh_from_db()
    assert (upload.position, upload.waiting_for) == (5, "client")


def test_a_delivery_waits_for_its_client_once_none_of_them_holds_it(upload: Transfer) -> None:
    for client in ("phone", "laptop"):
        ClientPosition.objects.create(
            transfer=upload, client=client, channel=f"channel of {client}", updated_at=timezone.now()
        )
    Transfer.objects.update(waiting_for="")
    for client, waiting_for in (("phone", ""), ("laptop", "client")):
        deliveries.DetachedDelivery(upload.pk, client, f"channel of {client}", 0, 1006).note()
        upload.refresh_from_db()
        assert (upload.waiting_for, upload.last_close_code) == (waiting_for, 1006)


def test_what_is_stored_is_hashed_behind_it(upload: Transfer) -> None:
    for number in range(3):
        segments.store(buffered(upload, number), worker="bee")
    record = leases.hold_digest(upload.payload_id)
    if digests.can_hash_ahead():
        assert record is not None
        hashed = digests.Hashed.unpack(record)
        assert hashed is not None
        assert hashed.position == len(DATA)
    else:
        assert record is None


def test_a_run_that_is_stored_already_changes_nothing(upload: Transfer, tmp_path: Path) -> None:
    for _ in range(2):
        segments.store(buffered(upload, 1), worker="bee")
    segments.store(buffered(upload, 0), worker="bee")
    segments.store(buffered(upload, 0), worker="wasp")
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
    segments.store(order, worker="bee")
    assert not Segment.objects.exists()
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    assert left(upload) == []


def test_what_overlaps_a_stored_segment_in_part_is_not_stored(upload: Transfer) -> None:
    Segment.objects.create(payload=upload.payload, storage="delivery", name="x", offset=RUN - 1, length=10)
    with pytest.raises(StaleLease):
        segments._room(buffered(upload, 0), 0)
    assert segments._room(buffered(upload, 2), 0) == [(RUN - 1, 10)]


def test_a_payload_of_unknown_size_is_charged_with_each_segment_and_learns_its_size(upload: Transfer) -> None:
    Payload.objects.update(size=None, reserved=0)
    Usage.objects.create(user=upload.user, stored=0, live=1, counted_at=timezone.now())
    segments.store(buffered(upload, 0), worker="bee")
    segments.store(buffered(upload, 1, ends=2 * RUN), worker="bee")
    payload = Payload.objects.get()
    assert (payload.size, payload.reserved, Usage.objects.get().stored) == (2 * RUN, 2 * RUN, 2 * RUN)


def last(upload: Transfer, **changes: Any) -> StoreRequest:
    return buffered(upload, 2, ends=len(DATA), completes=True, **changes)


def state_of(upload: Transfer) -> str:
    return Payload.objects.get(pk=upload.payload_id).state


def unknown(upload: Transfer, **limits: int | None) -> None:
    """Make of it an upload of unknown size, of which nothing is stored or charged."""
    limits = {"max_size": 10 * RUN, "max_stored": 10 * RUN} | limits
    Payload.objects.filter(pk=upload.payload_id).update(size=None, reserved=0, **limits)
    Usage.objects.create(user=upload.user, stored=0, live=1, counted_at=timezone.now())


def test_a_size_that_comes_before_other_segments_charges_them_all(upload: Transfer) -> None:
    unknown(upload)
    for number, charged in ((1, RUN), (2, 3 * RUN), (0, 3 * RUN)):
        ends = 3 * RUN if number == 2 else None
        segments.store(buffered(upload, number, ends=ends), worker="bee")
        assert Usage.objects.get().stored == Payload.objects.get(pk=upload.payload_id).reserved == charged


def test_segments_beyond_a_gap_are_charged_once(upload: Transfer) -> None:
    unknown(upload)
    for number in (0, 2):
        segments.store(buffered(upload, number), worker="bee")
    assert Usage.objects.get().stored == 2 * RUN
    uploads.rewind(upload.pk, upload.lease)
    assert Usage.objects.get().stored == RUN


@pytest.mark.parametrize("limit", ["max_size", "max_stored"])
def test_a_payload_of_unknown_size_fails_one_byte_past_its_limit(upload: Transfer, limit: str) -> None:
    unknown(upload, **{limit: 2 * RUN - 1})
    for number in range(2):
        segments.store(buffered(upload, number), worker="bee")
    payload = Payload.objects.get(pk=upload.payload_id)
    assert (payload.state, payload.failure) == (PayloadState.FAILED, "too_large")
    assert Usage.objects.get().stored == 0
    assert not Segment.objects.exists()


class Strict(DefaultPolicy):
    asked: ClassVar[list[bool]] = []  # whether inside a transaction

    def max_payload(self, user: Any) -> int:
        self.asked.append(connection.in_atomic_block)
        return RUN


def test_limits_that_an_earlier_version_did_not_keep_are_asked_for_once(
    upload: Transfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "current", Strict)
    unknown(upload, max_size=None, max_stored=None)
    segments.store(buffered(upload, 0), worker="bee")
    upload.refresh_from_db()
    assert (upload.position, upload.payload.max_size) == (RUN, RUN)
    segments.store(buffered(upload, 1), worker="bee")
    assert Payload.objects.get(pk=upload.payload_id).failure == "too_large"
    assert Strict.asked == [False]


@needs_rehashes
def test_a_payload_is_completed_with_its_last_segment(upload: Transfer) -> None:
    for number in range(2):
        segments.store(buffered(upload, number), worker="bee")
    segments.store(last(upload, sha256=SHA256), worker="bee")
    payload = Payload.objects.get()
    assert (payload.state, payload.sha256, payload.expected_sha256) == (PayloadState.COMPLETE, SHA256, SHA256)
    assert leases.hold_digest(payload.pk) is None
    upload.refresh_from_db()
    assert (upload.state, upload.position) == (TransferState.DONE, len(DATA))


@needs_rehashes
def test_the_last_segment_waits_a_moment_for_the_one_before_it(
    upload: Transfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments.store(buffered(upload, 0), worker="bee")
    before = [buffered(upload, 1)]
    monkeypatch.setattr(segments.time, "sleep", lambda _: segments.store(before.pop(), worker="wasp"))
    segments.store(last(upload), worker="bee")
    assert state_of(upload) == PayloadState.COMPLETE


@pytest.mark.parametrize("what", ["missing", "another digest", "changed", "held", "lost"])
def test_what_cannot_be_completed_with_its_last_segment_is_left_to_sealing(
    upload: Transfer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
) -> None:
    monkeypatch.setattr(segments, "MOST_LOOKS", 2)
    monkeypatch.setattr(digests, "FEW_LOOKS", 2)
    for number in (0,) if what == "missing" else (0, 1):
        segments.store(buffered(upload, number), worker="bee")
    if what == "changed":
        (tmp_path / Segment.objects.filter(offset=0).get().name).write_bytes(DATA[: RUN - 1])
    elif what == "held":
        leases.hold_digest(upload.payload_id)
    elif what == "lost":
        leases.drop_digest(upload.payload_id)
        monkeypatch.setattr(digests, "MOST_SEGMENTS", 1)
    segments.store(last(upload, sha256="0" * 64 if what == "another digest" else SHA256), worker="bee")
    upload.refresh_from_db()
    assert state_of(upload) == PayloadState.STORING
    assert upload.position == (RUN if what == "missing" else len(DATA))


def test_a_last_segment_of_an_earlier_lease_completes_nothing(upload: Transfer) -> None:
    for number in range(2):
        segments.store(buffered(upload, number), worker="bee")
    order = last(upload)
    Transfer.objects.update(lease=3)
    segments.store(order, worker="bee")
    assert state_of(upload) == PayloadState.STORING
    assert Segment.objects.count() == 2


def test_sealed_is_told_before_stored(upload: Transfer, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    waking = segments.notify.waking

    def noting(payload: Any, event: str, **numbers: Any) -> Any:
        told.append(event)
        return waking(payload, event, **numbers)

    monkeypatch.setattr(segments.notify, "waking", noting)
    Payload.objects.update(size=RUN)
    segments.store(buffered(upload, 0, ends=RUN, completes=True), worker="bee")
    assert told == ["sealed", "stored"]


def test_a_payload_of_one_segment_is_completed_with_it(upload: Transfer) -> None:
    Payload.objects.update(size=RUN)
    segments.store(buffered(upload, 0, ends=RUN, completes=True), worker="bee")
    payload = Payload.objects.get()
    assert payload.state == PayloadState.COMPLETE
    assert leases.hold_digest(payload.pk) is None


def test_a_request_is_flat_in_its_tasks_arguments_as_every_version_reads_them(upload: Transfer) -> None:
    request = last(upload, sha256="ab")
    arguments = request.arguments()
    assert arguments == {
        "transfer": upload.pk.hex,
        "payload": upload.payload_id.hex,
        "lease": 2,
        "start": 6,
        "end": 9,
        "chunk_size": CHUNK,
        "offset": 2 * RUN,
        "length": RUN,
        "ends": len(DATA),
        "again": False,
        "completes": True,
        "sha256": "ab",
    }
    assert StoreRequest.of(arguments | {"of a later version": 1}) == request
