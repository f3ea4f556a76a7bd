"""Hashing as segments are stored, in their order, so that sealing a large payload has little left to read.

The task that has stored a segment reads it back from Storage while it is still in some cache, and puts the state of
SHA-256 into Redis for the next one. Whoever finds no state, or finds that a file is no longer what was hashed, leaves
it: sealing then reads everything. `hashlib` cannot put a state down; `rehashes` can, where it is installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from delivery.buffer import digests
from delivery.errors import BufferUnavailable, IntegrityError, StorageUnavailable
from delivery.models import Payload, Segment
from delivery.protocol.frames import checksum
from delivery.storage import files, payloads
from delivery.transfers.rows import Statement

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


def follow(payload: UUID, record: bytes | None) -> None:
    """Hash what has been stored and joins on. Never raises: it is work done ahead.

    `record`: what taking it gave (`digests.taking`); nothing is done where another task holds it.
    """
    if record == digests.HELD:
        return
    try:
        _follow(payload, record)
    except (BufferUnavailable, StorageUnavailable, IntegrityError) as error:
        logger.info("payload %s is hashed when it is sealed: %s", payload, error)
        forget(payload)


def _follow(payload: UUID, record: bytes | None) -> None:
    hashed = Hashed(0, PySha256(), 0) if record is None else Hashed.unpack(record)
    if hashed is None:
        return digests.drop(payload)
    joining = _JOINING.fetch(payload, hashed.position)
    if record is None and len(joining) > MOST_SEGMENTS:
        return digests.drop(payload)  # the state was lost: too much to begin anew between two tasks
    for offset, length, alias, name, file_offset in joining[:MOST_SEGMENTS]:
        if offset != hashed.position:
            break
        hashed.add(Segment(storage=alias, name=name, file_offset=file_offset, length=length))
    return digests.put(payload, hashed.pack())


def resume(payload: Payload) -> Hashed | None:
    """Return how far a payload is hashed, and hold it; None where everything has to be read."""
    if not possible():
        return None
    try:
        record = _wait_for(payload.pk)
        hashed = None if record is None else Hashed.unpack(record)
    except BufferUnavailable:
        return None
    return hashed if hashed is not None and _unchanged(payload, hashed) else None


def _wait_for(payload: UUID) -> bytes | None:
    """Take the record as soon as nobody holds it; None where it does not come, or there is none."""
    for _ in range(MOST_LOOKS):
        if (record := digests.take(payload)) != digests.HELD:
            return record
        time.sleep(LOOK_SECONDS)
    return None


def _unchanged(payload: Payload, hashed: Hashed) -> bool:
    """Return whether all files that were hashed are what they were then."""
    seen = 0
    segments: Iterable[Segment] = payloads.segments_of(payload, 0, hashed.position) if hashed.position else ()
    for segment in segments:
        seen = look_of(segment, seen)
    return seen == hashed.seen


def of_file(alias: str, name: str, length: int) -> str | None:
    """Return the SHA-256 of a file, read back from Storage; None where it does not read."""
    digest = hashlib.sha256()
    try:
        for piece in files.read(alias, name, 0, length, memoryview(bytearray(files.PIECE_BYTES))):
            digest.update(piece)
    except (StorageUnavailable, IntegrityError) as error:
        logger.warning("%s is not hashed: %s", name, error)
        return None
    return digest.hexdigest()


def keep(payload: UUID, hashed: Hashed) -> None:
    """Put a state back that somebody else is to go on with."""
    with contextlib.suppress(BufferUnavailable):
        digests.put(payload, hashed.pack())


def forget(payload: UUID) -> None:
    """Remove what is known of a payload's hash."""
    if possible():
        with contextlib.suppress(BufferUnavailable):
            digests.drop(payload)
