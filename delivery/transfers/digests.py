"""The SHA-256 of what is stored; only once it agrees is a payload complete (PROTOCOL section 4).

Sealing is for payloads that are not completed with their last segment. It is the only long task: it keeps a heartbeat on the
payload's row, stops between blocks when its worker drains, and is started again by a waiter or the sweep. Leases do not fence
it, since the bytes that it reads no longer change.

Hashing ahead is there only for speed: segments are hashed as they are stored, in their order, so that a large payload has
little left to read when its last byte is stored. The task that has stored a segment reads it back from Storage while it is
still in some cache, and puts the state of SHA-256 into Redis for the next one; the one with the last segment has the digest
then. Whoever finds no state, or finds that a file is no longer what was hashed, leaves it: sealing then reads everything.
`hashlib` cannot put a state down; `rehashes` can, where it is installed. Without it every payload of more than one segment
is read once from Storage after its last byte, before it is complete.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db.models import Q
from django.utils import timezone

from delivery import dispatch, notify
from delivery.buffer import leases
from delivery.errors import BufferUnavailable, IntegrityError, PolicyUnavailable, StorageUnavailable
from delivery.models import Payload, PayloadState, Segment
from delivery.protocol.frames import checksum
from delivery.storage import files, payloads
from delivery.storage.files import PIECE_BYTES
from delivery.transfers import missing_files, outcomes, recipients, sql, timeline, uploads
from delivery.transfers.sql import Statement

try:
    from rehashes import PySha256
except ImportError:  # there are no wheels for this platform
    PySha256 = None

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 2.0
DEAD_AFTER_SECONDS = 7.0  # with the 2 s at which a waiter asks again, less than the 10 s that are promised
MOST_SEGMENTS = 4  # hashed by one task: its worker has other work
_JOINING = Statement(
    Segment,
    "SELECT {offset}, {length}, {storage}, {name}, {file_offset} FROM {table}"
    " WHERE {payload} = %s AND {offset} >= %s ORDER BY {offset}",
    *("payload", "offset"),
)
LOOK_SECONDS = 0.005
MOST_LOOKS = 400  # for a state that another task holds: 2 s
FEW_LOOKS = 100  # where a commit waits: 0.5 s


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
            outcomes.fail(payload_id, "digest", keep_files=payload.completed_at is not None)  # revived, in vain
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
        forget_hashed(payload_id)  # whoever is dead may hold it, and we would wait for that
    return Payload.objects.get(pk=payload_id)


def _release(payload_id: UUID, sealer: str) -> None:
    Payload.objects.filter(pk=payload_id, sealer=sealer).update(sealing_at=None, sealer="")


def _digest(payload: Payload, sealer: str, draining: Callable[[], bool]) -> str | None:
    """Return the SHA-256 of what is stored; None where the task is to stop, or lost its claim.

    Goes on from where storing has hashed to. A digest that is not the expected one is computed once more from all of
    it, before anything is failed.
    """
    may_go_on = _Pulse(payload, sealer, draining)
    hashed = resume_hashed(payload)
    if hashed is not None:
        found = _rest(payload, hashed, may_go_on)
        if found is None or not payload.expected_sha256 or found == payload.expected_sha256:
            return found
    forget_hashed(payload.pk)
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
            keep_hashed(payload.pk, hashed)
            return None
    forget_hashed(payload.pk)
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


# -- hashing ahead -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Hashed:
    """A payload hashed up to byte `position`. `seen`: a checksum of what the files looked like that were hashed."""

    position: int
    sha256: Any
    seen: int

    def add(self, segment: Segment) -> None:
        """Hash one more segment. Raises `StorageUnavailable`, `IntegrityError`."""
        self.seen = _look_of(segment, self.seen)
        for piece in files.read_bytes(segment.storage, segment.name, segment.file_offset, segment.length):
            self.sha256.update(piece)
        self.position += segment.length

    def digest(self) -> str:
        """Return the SHA-256 of what was hashed, hex; nothing can be added after that."""
        return str(self.sha256.finalize())

    def pack(self) -> bytes:
        members = {"position": self.position, "sha256": self.sha256.serialize().hex(), "seen": self.seen}
        text = json.dumps(members).encode()
        return b"%08x%b" % (checksum(text), text)

    @classmethod
    def unpack(cls, record: bytes) -> Hashed | None:
        """Read what `pack` wrote, None where it is something else."""
        text = record[8:]
        if record[:8] != b"%08x" % checksum(text):
            return None
        members = json.loads(text)
        return cls(members["position"], PySha256.deserialize(bytes.fromhex(members["sha256"])), members["seen"])


def _look_of(segment: Segment, before: int) -> int:
    """Return a checksum of what Storage says of a file, after that of those before it."""
    return checksum(files.look(segment.storage, segment.name).encode(), before)


def can_hash_ahead() -> bool:
    """Return whether a state of SHA-256 can be put down here."""
    return PySha256 is not None


def hash_ahead(payload: UUID, record: bytes | None) -> Hashed | None:
    """Hash what has been stored and joins on, put the state back, and return it. Never raises: it is work done ahead.

    `record`: what taking it gave (`leases.hold_digest_command`); nothing is done, and None returned, where another task holds it.
    """
    if record == leases.DIGEST_HELD:
        return None
    try:
        return _hash_joining(payload, record)
    except (BufferUnavailable, StorageUnavailable, IntegrityError) as error:
        logger.info("payload %s is hashed when it is sealed: %s", payload, error)
        forget_hashed(payload)
        return None


def _hash_joining(payload: UUID, record: bytes | None) -> Hashed | None:
    hashed = Hashed(0, PySha256(), 0) if record is None else Hashed.unpack(record)
    joining = [] if hashed is None else _JOINING.fetch(payload, hashed.position)
    # Where the state was lost, it may be too much to begin anew between two tasks.
    if hashed is None or (record is None and len(joining) > MOST_SEGMENTS):
        leases.drop_digest(payload)
        return None
    for offset, length, alias, name, file_offset in joining[:MOST_SEGMENTS]:
        if offset != hashed.position:
            break
        hashed.add(Segment(storage=alias, name=name, file_offset=file_offset, length=length))
    leases.put_digest(payload, hashed.pack())
    return hashed


def resume_hashed(payload: Payload) -> Hashed | None:
    """Return how far a payload is hashed, and hold it; None where everything has to be read."""
    if not can_hash_ahead():
        return None
    try:
        record = _wait_for(payload.pk, MOST_LOOKS)
        hashed = None if record is None else Hashed.unpack(record)
    except BufferUnavailable:
        return None
    return hashed if hashed is not None and _unchanged(payload.pk, hashed) else None


def _wait_for(payload: UUID, looks: int) -> bytes | None:
    """Take the record as soon as nobody holds it; `HELD` where that does not come, None where there is none."""
    for _ in range(looks):
        if (record := leases.hold_digest(payload)) != leases.DIGEST_HELD:
            return record
        time.sleep(LOOK_SECONDS)
    return leases.DIGEST_HELD


def _unchanged(payload: UUID, hashed: Hashed) -> bool:
    """Return whether all files that were hashed are what they were then."""
    seen = 0
    if hashed.position:
        for segment in payloads.segments_of(Payload(pk=payload), 0, hashed.position):
            seen = _look_of(segment, seen)
    return seen == hashed.seen


def of_whole(last: Segment) -> str | None:
    """Return the SHA-256 of a payload whose `last` segment is written, and has no row yet.

    None where what stands before it is not all stored and hashed by now, or anything does not read.
    """
    try:
        return _of_file(last) if last.offset == 0 else _of_last(last)
    except (BufferUnavailable, StorageUnavailable, IntegrityError) as error:
        logger.info("payload %s is hashed when it is sealed: %s", last.payload_id, error)
        return None


def _of_file(only: Segment) -> str:
    digest = hashlib.sha256()
    for piece in files.read(only.storage, only.name, 0, only.length, memoryview(bytearray(files.PIECE_BYTES))):
        digest.update(piece)
    return digest.hexdigest()


def _of_last(last: Segment) -> str | None:
    """Hash the last segment behind what has been; that state stays where it is, for whoever has to do it again."""
    payload = last.payload_id
    hashed = hash_ahead(payload, _wait_for(payload, FEW_LOOKS)) if can_hash_ahead() else None
    if hashed is None or hashed.position != last.offset or not _unchanged(payload, hashed):
        return None
    hashed.add(last)
    return hashed.digest()


def keep_hashed(payload: UUID, hashed: Hashed) -> None:
    """Put a state back that somebody else is to go on with."""
    with contextlib.suppress(BufferUnavailable):
        leases.put_digest(payload, hashed.pack())


def forget_hashed(payload: UUID) -> None:
    """Remove what is known of a payload's hash."""
    if can_hash_ahead():
        with contextlib.suppress(BufferUnavailable):
            leases.drop_digest(payload)
