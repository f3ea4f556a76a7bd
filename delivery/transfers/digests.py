"""Sealing: the SHA-256 of what is stored; only then is a payload complete (PROTOCOL section 4).

For whatever is not completed with its last segment. The long task among short ones: it holds a heartbeat on the payload's
row, stops between blocks when its worker drains, and is started again by whoever waits, or by the sweep. Leases do not
fence it: what it reads no longer changes.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import secrets
import time
from collections.abc import Callable
from uuid import UUID

from django.db.models import Q
from django.utils import timezone

from delivery import dispatch, notify
from delivery.buffer import leases
from delivery.errors import BufferUnavailable, IntegrityError, PolicyUnavailable, StorageUnavailable
from delivery.models import Payload, PayloadState
from delivery.storage import payloads
from delivery.storage.files import PIECE_BYTES
from delivery.transfers import ending, hashing, missing_files, outcomes, recipients, sql, timeline, uploads
from delivery.transfers.hashing import Hashed

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 2.0
DEAD_AFTER_SECONDS = 7.0  # with the 2 s at which a waiter asks again, less than the 10 s that are promised


def begin(transfer: UUID, lease: int, size: int, sha256: str | None) -> None:
    """Freeze an upload whose every byte is stored: what is left is its digest.

    Raises `StaleLease`, `IntegrityError` where rows do not hold `size` bytes, `Refused` where the size is learned now and
    is more than its owner may have.
    """
    with sql.atomic():
        row = uploads.locked_under(transfer, lease)
        if row.position != size:
            raise IntegrityError(f"{row.position} bytes are stored, expected {size}")
        uploads.learn(row.payload, size, sha256)
        if row.payload.state == PayloadState.STORING:
            Payload.objects.filter(pk=row.payload_id).update(state=PayloadState.SEALING)


def seal(payload_id: UUID, *, worker: str, draining: Callable[[], bool] = lambda: False) -> None:
    """Compute the digest of what is stored, and complete or fail the payload.

    Does nothing where another task is at it and lives. Stops early, to be started again, where `draining` says so.
    """
    try:
        leases.clear(dispatch.seal_marker(payload_id))
    except BufferUnavailable:
        pass  # it lapses by itself
    sealer = secrets.token_hex(8)
    payload = _claim(payload_id, sealer)
    if payload is None:
        return outcomes.tell(payload_id)
    try:
        recipients.of_payload(payload_id)  # so that nothing is read for nothing
        digest = _digest(payload, sealer, draining)
    except PolicyUnavailable as error:
        logger.error("payload %s not sealed: %s", payload_id, error)
        digest = None
    except (StorageUnavailable, IntegrityError) as error:
        logger.error("payload %s not sealed: %s", payload_id, error)
        _release(payload_id, sealer)
        if isinstance(error, IntegrityError):
            ending.fail(payload_id, "digest", keep_files=payload.completed_at is not None)  # revived, in vain
        missing_files.seen_if_missing(payload_id, error)
        timeline.note("unsealed", payload=payload_id, error=type(error).__name__)
        return notify.wake(payload_id, "unsealed", worker=worker)
    if digest is None:
        _release(payload_id, sealer)
        return notify.wake(payload_id, "unsealed", worker=worker)
    outcomes.complete(payload_id, digest, sealer=sealer)
    return None


def _claim(payload_id: UUID, sealer: str) -> Payload | None:
    """Return the payload if it is to be sealed and nobody who lives is at it."""
    now = timezone.now()
    dead = now - datetime.timedelta(seconds=DEAD_AFTER_SECONDS)
    left = Q(sealing_at__lt=dead) | Q(sealing_at__gt=now + (now - dead))  # a clock may jump back
    rows = Payload.objects.filter(pk=payload_id, state=PayloadState.SEALING)
    if not rows.filter(sealing_at=None).update(sealing_at=now, sealer=sealer):
        if not rows.filter(left).update(sealing_at=now, sealer=sealer):
            return None
        hashing.forget(payload_id)  # whoever is dead may hold it, and we would wait for that
    return Payload.objects.get(pk=payload_id)


def _release(payload_id: UUID, sealer: str) -> None:
    Payload.objects.filter(pk=payload_id, sealer=sealer).update(sealing_at=None, sealer="")


def _digest(payload: Payload, sealer: str, draining: Callable[[], bool]) -> str | None:
    """Return the SHA-256 of what is stored; None where the task is to stop, or lost its claim.

    Goes on from where storing has hashed to. A digest that is not the expected one is computed once more from all of
    it, before anything is failed.
    """
    may_go_on = _Pulse(payload, sealer, draining)
    hashed = hashing.resume(payload)
    if hashed is not None:
        found = _rest(payload, hashed, may_go_on)
        if found is None or not payload.expected_sha256 or found == payload.expected_sha256:
            return found
    hashing.forget(payload.pk)
    digest = hashlib.sha256()
    for piece in payloads.pieces(payload, 0, payload.size or 0, memoryview(bytearray(PIECE_BYTES))):
        digest.update(piece)
        if not may_go_on():
            return None
    return digest.hexdigest()


def _rest(payload: Payload, hashed: Hashed, may_go_on: Callable[[], bool]) -> str | None:
    """Hash the segments that are not yet; what is done is kept for the next task where this one is to stop."""
    size = payload.size or 0
    segments = payloads.segments_of(payload, hashed.position, size) if hashed.position < size else []
    for segment in segments:
        hashed.add(segment)
        if not may_go_on():
            hashing.keep(payload.pk, hashed)
            return None
    hashing.forget(payload.pk)
    return hashed.digest()


class _Pulse:
    """The heartbeat of one sealing task on its payload's row; called between pieces, it says whether to go on."""

    def __init__(self, payload: Payload, sealer: str, draining: Callable[[], bool]) -> None:
        self._mine = Payload.objects.filter(pk=payload.pk, sealer=sealer, state=PayloadState.SEALING)
        self._draining = draining
        self._beat = time.monotonic()

    def __call__(self) -> bool:
        if time.monotonic() - self._beat < HEARTBEAT_SECONDS:
            return True
        self._beat = time.monotonic()
        return not self._draining() and bool(self._mine.update(sealing_at=timezone.now()))
