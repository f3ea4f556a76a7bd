"""Storing: a run of buffered chunks becomes a segment, under the lease that it was received with.

`store` is the work of one task: idempotent, it may run twice or never.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from delivery import conf, dispatch, notify
from delivery.buffer import chunks, exchange, leases
from delivery.errors import (
    BufferUnavailable,
    ChunksLost,
    IntegrityError,
    PolicyUnavailable,
    Refused,
    StaleLease,
    StorageUnavailable,
)
from delivery.models import Address, Payload, PayloadState, Segment, Transfer, TransferState, WaitingFor
from delivery.protocol.storing import ChunkRange
from delivery.storage import files
from delivery.transfers import admission, digests, outcomes, quotas, recipients, sql, timeline, uploads
from delivery.transfers.sql import Insert, Statement

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.005
MOST_LOOKS = 40  # for what others are storing: 0.2 s
Run = tuple[int, int]  # offset and length in bytes

_PAYLOAD = Statement(
    Payload,
    "SELECT {owner}, {state}, {size}, {expected_sha256}, {keep}, {reserved}, {max_size}, {max_stored} FROM {table}"
    " WHERE {id} = %s AND {lifetime} IS NULL",
    "id",
)
_INSERT = Insert(Segment, "payload", "storage", "name", "offset", "length")
_BEYOND = Statement(
    Segment,
    "SELECT {offset}, {length} FROM {table} WHERE {payload} = %s AND {offset} >= %s ORDER BY {offset}",
    *("payload", "offset"),
)
_ADVANCE = Statement(
    Transfer,
    "UPDATE {table} SET {position} = %s, {progressed_at} = %s, {expires_at} = %s, {worker} = %s,"
    " {waiting_for} = CASE WHEN {channel} = %s THEN %s ELSE %s END WHERE {id} = %s",
    *("position", "progressed_at", "expires_at", "worker", "channel", "waiting_for", "waiting_for", "id"),
)


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """What a task needs to store one run: ids and numbers.

    `offset` and `length` in bytes; `ends`: the payload's size where this run is known to be its last, else None.
    `again`: asked for before, so that it may be stored already. `completes`: it is the last run and `finish` came,
    with the digest `sha256` if one was given: the payload is completed with this segment.
    """

    transfer: UUID
    payload: UUID
    lease: int
    chunks: ChunkRange
    chunk_size: int
    offset: int
    length: int
    ends: int | None = None
    again: bool = False
    completes: bool = False
    sha256: str = ""

    @property
    def marker(self) -> str:
        return dispatch.store_marker(self.payload, self.lease, self.chunks.start)

    def arguments(self) -> dict[str, Any]:
        """Return the JSON form, as a task's arguments: flat, as every version reads them."""
        members = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "chunks"}
        ids = {"transfer": self.transfer.hex, "payload": self.payload.hex}
        return members | ids | {"start": self.chunks.start, "end": self.chunks.end}

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> StoreRequest:
        """Read the arguments of a task; what this version does not know is ignored."""
        known = {name: arguments[name] for name in cls.__dataclass_fields__ if name in arguments}
        ids = {"transfer": UUID(arguments["transfer"]), "payload": UUID(arguments["payload"])}
        return cls(**known | ids, chunks=ChunkRange(arguments["start"], arguments["end"]))


class TakesMore(Protocol):
    """Says in Redis that the task which stores a request takes more of them (`handover`)."""

    def opening(self) -> tuple[exchange.Command, ...]:
        """Return what says so as the request's work begins."""
        ...

    def opening_late(self) -> tuple[exchange.Command, ...]:
        """Return what says so, where nothing did yet, now that the segment is stored."""
        ...


def store(request: StoreRequest, *, worker: str, more: TakesMore | None = None) -> None:
    """Move one run from the buffer into Storage, commit its row, and wake who waits.

    `more`: says on the way that this task takes more runs.
    What goes wrong is told in the wake-up: `lost` with the chunk that is gone, `unstored` where Storage fails.
    """
    try:
        if request.again and not _needed(request):
            leases.clear(request.marker)
            _drop_void(request)
            return _tell_position(request, worker)
        pieces = _bytes_of(request, more)
        name = files.write(
            conf.current().storage, request.payload, request.offset, request.lease, pieces, request.length
        )
    except ChunksLost as lost:
        if not _needed(request):  # another attempt was faster, and has dropped them since we looked
            return _tell_position(request, worker)
        notify.wake(request.payload, "lost", lease=request.lease, seq=lost.seq, worker=worker)
    except (IntegrityError, BufferUnavailable) as error:
        logger.warning("segment at %d of %s: %s", request.offset, request.payload, error)
        notify.wake(request.payload, "lost", lease=request.lease, seq=request.chunks.start, worker=worker)
    except StorageUnavailable as error:
        logger.error("segment at %d of %s not stored: %s", request.offset, request.payload, error)
        timeline.note("storage_unavailable", payload=request.payload, transfer=request.transfer, offset=request.offset)
        notify.wake(request.payload, "unstored", lease=request.lease, start=request.chunks.start, worker=worker)
    else:
        _commit(request, name, worker, more)


def _bytes_of(request: StoreRequest, more: TakesMore | None) -> Iterator[bytes]:
    """Yield the chunks of a run. Raises as `chunks.fetch` does, and `IntegrityError` where they have another length."""
    length = 0
    opening = more.opening() if more is not None else ()
    for data in chunks.fetch(
        request.payload, request.lease, request.chunks, leases.clear_command(request.marker), *opening
    ):
        length += len(data)
        yield data
    if length != request.length:
        raise IntegrityError(f"{length} bytes are buffered, expected {request.length}")


def _needed(request: StoreRequest) -> bool:
    """Return whether the run is still to be stored under its lease."""
    current = Transfer.objects.filter(pk=request.transfer, lease=request.lease, state=TransferState.LIVE)
    return current.filter(position__lte=request.offset).exists() and not _covered(request)


def _drop_void(request: StoreRequest) -> None:
    """Remove the chunks of a transfer that has ended, or of an earlier lease: nobody will ask for them again."""
    if not Transfer.objects.filter(pk=request.transfer, lease=request.lease, state=TransferState.LIVE).exists():
        with contextlib.suppress(BufferUnavailable):  # then they expire
            chunks.drop(request.payload, request.lease, request.chunks)


def _covered(request: StoreRequest) -> bool:
    """Return whether any segment overlaps the run: another attempt was faster."""
    end = request.offset + request.length
    before = Segment.objects.filter(payload_id=request.payload, offset__lt=end).order_by("-offset")
    last = before.values_list("offset", "length").first()
    return last is not None and sum(last) > request.offset


class _LimitsMissing(Exception):
    """The row of an upload of unknown size has no limits: a process of an earlier version made it."""


def _commit(request: StoreRequest, name: str, worker: str, more: TakesMore | None) -> None:
    """Commit the segment's row under its lease, the payload's completion with it; a loser deletes only its own file."""
    alias, completed, settled, position = conf.current().storage, False, False, 0
    ending_now = _ending(request, alias, name) if request.completes else None
    try:
        with sql.atomic():
            locked = uploads.lock_under(request.payload, request.transfer, request.lease)
            beyond = _room(request, locked.position)
            _INSERT.run([(request.payload, alias, name, request.offset, request.length)])
            if locked.size is None:
                _grow(request, locked)
            position = _advance(request, locked.position, beyond, worker)
            completed = ending_now is not None and _complete(request, position, *ending_now)
            settled = True
    except _LimitsMissing:
        return _commit_with_limits(request, name, worker, more)
    except StaleLease:
        files.delete(alias, name)
        _drop_void(request)
    except Refused:  # a quota too: as it grows, both are `too_large` (PROTOCOL section 5)
        files.delete(alias, name)
        outcomes.fail(request.payload, "too_large")
        return
    except BaseException:
        # A connection that is lost at COMMIT does not tell whether the row is there now: whoever waits asks again, and
        # a file that nobody names is found by the sweep.
        if not settled:
            files.delete(alias, name)
        raise
    else:
        _settle(request, position, worker, more, completed=completed)
        return
    _tell_position(request, worker)


def _commit_with_limits(request: StoreRequest, name: str, worker: str, more: TakesMore | None) -> None:
    """Ask for the limits that an earlier version did not keep, and commit."""
    try:
        admission.keep_limits(request.payload)
    except BaseException:
        files.delete(conf.current().storage, name)
        raise
    _commit(request, name, worker, more)


def _ending(request: StoreRequest, alias: str, name: str) -> tuple[str, list[Any]] | None:
    """Return digest and recipients of a payload that this segment completes, None where that is left to sealing."""
    digest = _digest(request, alias, name)
    try:
        return None if digest is None else (digest, recipients.of_payload(request.payload))
    except PolicyUnavailable:
        return None


def _digest(request: StoreRequest, alias: str, name: str) -> str | None:
    """Return the SHA-256 of a payload whose last segment has just been written, None where that is left to sealing."""
    if request.offset and not _all_before(request):
        return None
    return digests.of_whole(
        Segment(payload_id=request.payload, storage=alias, name=name, offset=request.offset, length=request.length)
    )


def _all_before(request: StoreRequest) -> bool:
    """Return whether everything before the last run is stored. The run is often the shortest: wait a moment for others.

    They were asked for before it. Should they take longer, nothing is lost: it is they who are waited for then.
    """
    for look in range(MOST_LOOKS):
        if look:
            time.sleep(LOOK_SECONDS)
        lease, position, _ = uploads.position(request.transfer)
        if lease != request.lease or position >= request.offset:
            return position == request.offset
    return False


def _settle(request: StoreRequest, position: int, worker: str, more: TakesMore | None, *, completed: bool) -> None:
    """Do what comes behind the commit: wake who waits, drop the chunks, hash what is stored.

    Told first: an ack waits for it. The row was ours until it was committed, so what it said needs no question.
    """
    opening = more.opening_late() if more is not None and not completed else ()
    told = notify.waking(request.payload, "stored", lease=request.lease, position=position, worker=worker)
    ahead = digests.can_hash_ahead() and not completed
    state = leases.hold_digest_command(request.payload) if ahead else leases.drop_digest_command(request.payload)
    try:
        *_, record = exchange.run_commands(
            *opening, told, chunks.drop_command(request.payload, request.lease, request.chunks), state
        )
    except BufferUnavailable as error:  # whoever waits looks for itself, and the chunks expire
        logger.warning("segment at %d of %s is stored, nobody told: %s", request.offset, request.payload, error)
        return
    if ahead:
        digests.hash_ahead(request.payload, record)


def _room(request: StoreRequest, position: int) -> list[Run]:
    """Return the segments that were stored beyond `position`, in request.

    Raises `StaleLease` where the run is stored already, by another attempt that was faster.
    """
    beyond = _BEYOND.fetch(request.payload, position)
    end = request.offset + request.length
    if position > request.offset or any(at < end and at + length > request.offset for at, length in beyond):
        raise StaleLease("another attempt stored this run")
    return beyond


def _complete(request: StoreRequest, position: int, digest: str, users: list[Any]) -> bool:
    """Complete a payload of which this was the last segment to be stored, if its digest is the expected one.

    Otherwise it is left to sealing, which looks twice before it fails anything.
    """
    payload = _payload_of(request)
    uploads.learn(payload, request.ends, request.sha256 or None)
    if payload.state != PayloadState.STORING or position != payload.size:
        return False
    if not {payload.expected_sha256, request.sha256} <= {"", digest}:
        return False
    outcomes.complete_locked(payload, digest, users)
    return True


def _payload_of(request: StoreRequest) -> Payload:
    """Return the payload, locked with its transfer, as far as completing needs it; charging has changed it."""
    for owner, state, size, expected, keep, reserved, max_size, max_stored in _PAYLOAD.fetch(request.payload):
        return Payload(
            id=request.payload,
            owner_id=owner,
            state=state,
            size=size,
            expected_sha256=expected,
            keep=bool(keep),
            reserved=reserved,
            max_size=max_size,
            max_stored=max_stored,
        )
    return Payload.objects.get(pk=request.payload)


def _grow(request: StoreRequest, locked: uploads.Locked) -> None:
    """Charge the quota with a segment of a payload whose size nobody knew at the offer; learn it with its last one.

    By the limits in its row: no site code runs here. Raises `Refused`, and `_LimitsMissing`.
    """
    if locked.max_size is None or locked.max_stored is None:
        raise _LimitsMissing
    payload = _payload_of(request)
    admission.check_size(request.offset + request.length, locked.max_size)
    if not quotas.grow(payload, locked.max_stored, request.length):
        raise Refused("quota", "the user's quota is used up")
    uploads.learn(payload, request.ends, None)


def _advance(request: StoreRequest, position: int, beyond: list[Run], worker: str) -> int:
    """Move the position over every segment that joins on; return it."""
    position = _joined(position, sorted([*beyond, (request.offset, request.length)]))
    now, expires = uploads.progress_times()
    # Its connection may have gone while the run was stored.
    _ADVANCE.run(position, now, expires, worker, "", WaitingFor.CLIENT.value, "", request.transfer)
    return position


def _joined(position: int, segments: list[Run]) -> int:
    """Return how far the segments reach from `position` on without a gap."""
    for offset, length in segments:
        if offset != position:
            break
        position += length
    return position


def _tell_position(request: StoreRequest, worker: str) -> None:
    lease, position, _ = uploads.position(request.transfer)
    notify.wake(request.payload, "stored", lease=lease, position=position, worker=worker)


def insert_payload(payload: Payload, addresses: Sequence[str], segments: Sequence[Segment]) -> None:
    """Write the rows of a payload of server code, inside the caller's transaction.

    `segments`: not saved; their bytes are in Storage already, or lie there in place.
    """
    payload.save(force_insert=True)
    Address.objects.bulk_create(Address(payload=payload, address=address) for address in addresses)
    for segment in segments:
        segment.payload = payload
    Segment.objects.bulk_create(segments)
