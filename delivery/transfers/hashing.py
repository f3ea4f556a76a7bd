"""Hashing as segments are stored, in their order, so that sealing a large payload has little left to read.

The task that has stored a segment reads it back from Storage while it is still in some cache, and puts the state of
SHA-256 into Redis for the next one; the one with the last segment has the digest then. Whoever finds no state, or finds
that a file is no longer what was hashed, leaves it: sealing then reads everything. `hashlib` cannot put a state down;
`rehashes` can, where it is installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from delivery.buffer import leases
from delivery.errors import BufferUnavailable, IntegrityError, StorageUnavailable
from delivery.models import Payload, Segment
from delivery.protocol.frames import checksum
from delivery.storage import files, payloads
from delivery.transfers.sql import Statement

try:
    from rehashes import PySha256
except ImportError:  # there are no wheels for this platform
    PySha256 = None

logger = logging.getLogger(__name__)

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


@dataclass(slots=True)
class Hashed:
    """A payload hashed up to byte `position`. `seen`: a checksum of what the files looked like that were hashed."""

    position: int
    sha256: Any
    seen: int

    def add(self, segment: Segment) -> None:
        """Hash one more segment. Raises `StorageUnavailable`, `IntegrityError`."""
        self.seen = look_of(segment, self.seen)
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


def look_of(segment: Segment, before: int) -> int:
    """Return a checksum of what Storage says of a file, after that of those before it."""
    return checksum(files.look(segment.storage, segment.name).encode(), before)


def possible() -> bool:
    """Return whether a state of SHA-256 can be put down here."""
    return PySha256 is not None


def follow(payload: UUID, record: bytes | None) -> Hashed | None:
    """Hash what has been stored and joins on, put the state back, and return it. Never raises: it is work done ahead.

    `record`: what taking it gave (`leases.hold_digest_command`); nothing is done, and None returned, where another task holds it.
    """
    if record == leases.DIGEST_HELD:
        return None
    try:
        return _follow(payload, record)
    except (BufferUnavailable, StorageUnavailable, IntegrityError) as error:
        logger.info("payload %s is hashed when it is sealed: %s", payload, error)
        forget(payload)
        return None


def _follow(payload: UUID, record: bytes | None) -> Hashed | None:
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


def resume(payload: Payload) -> Hashed | None:
    """Return how far a payload is hashed, and hold it; None where everything has to be read."""
    if not possible():
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
            seen = look_of(segment, seen)
    return seen == hashed.seen


def of_all(last: Segment) -> str | None:
    """Return the SHA-256 of a payload whose `last` segment is written, and has no row yet.

    None where what stands before it is not all stored and hashed by now, or anything does not read.
    """
    try:
        return _of_file(last) if last.offset == 0 else _go_on(last)
    except (BufferUnavailable, StorageUnavailable, IntegrityError) as error:
        logger.info("payload %s is hashed when it is sealed: %s", last.payload_id, error)
        return None


def _of_file(only: Segment) -> str:
    digest = hashlib.sha256()
    for piece in files.read(only.storage, only.name, 0, only.length, memoryview(bytearray(files.PIECE_BYTES))):
        digest.update(piece)
    return digest.hexdigest()


def _go_on(last: Segment) -> str | None:
    """Hash the last segment behind what has been; that state stays where it is, for whoever has to do it again."""
    payload = last.payload_id
    hashed = follow(payload, _wait_for(payload, FEW_LOOKS)) if possible() else None
    if hashed is None or hashed.position != last.offset or not _unchanged(payload, hashed):
        return None
    hashed.add(last)
    return hashed.digest()


def keep(payload: UUID, hashed: Hashed) -> None:
    """Put a state back that somebody else is to go on with."""
    with contextlib.suppress(BufferUnavailable):
        leases.put_digest(payload, hashed.pack())


def forget(payload: UUID) -> None:
    """Remove what is known of a payload's hash."""
    if possible():
        with contextlib.suppress(BufferUnavailable):
            leases.drop_digest(payload)
