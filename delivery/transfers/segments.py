"""Storing: a run of buffered chunks becomes a segment, under the lease that it was taken in with.

`store` is the work of one task: idempotent, it may run twice or never.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.utils import timezone

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
from delivery.models import Payload, PayloadState, Segment, Transfer, TransferState, WaitingFor
from delivery.protocol.storing import ChunkRange
from delivery.storage import files
from delivery.transfers import admission, digests, outcomes, quotas, recipients, sql, timeline, uploads
from delivery.transfers.sql import Insert, Statement

if TYPE_CHECKING:
    from delivery.transfers.handover import Following

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


def store(order: StoreRequest, *, worker: str, following: Following | None = None) -> None:
    """Move one run from the buffer into Storage, commit its row, and wake who waits.

    `following`: says on the way that this task takes more runs.
    What goes wrong is told in the wake-up: `lost` with the chunk that is gone, `unstored` where Storage fails.
    """
    try:
        if order.again and not _needed(order):
            leases.clear(order.marker)
            _drop_void(order)
            return _tell_position(order, worker)
        pieces = _bytes_of(order, following)
        name = files.write(conf.current().storage, order.payload, order.offset, order.lease, pieces, order.length)
    except ChunksLost as lost:
        if not _needed(order):  # another attempt was faster, and has dropped them since we looked
            return _tell_position(order, worker)
        notify.wake(order.payload, "lost", lease=order.lease, seq=lost.seq, worker=worker)
    except (IntegrityError, BufferUnavailable) as error:
        logger.warning("segment at %d of %s: %s", order.offset, order.payload, error)
        notify.wake(order.payload, "lost", lease=order.lease, seq=order.chunks.start, worker=worker)
    except StorageUnavailable as error:
        logger.error("segment at %d of %s not stored: %s", order.offset, order.payload, error)
        timeline.note("storage_unavailable", payload=order.payload, transfer=order.transfer, offset=order.offset)
        notify.wake(order.payload, "unstored", lease=order.lease, start=order.chunks.start, worker=worker)
    else:
        _commit(order, name, worker, following)


def _bytes_of(order: StoreRequest, following: Following | None) -> Iterator[bytes]:
    """Yield the chunks of a run. Raises as `chunks.fetch` does, and `IntegrityError` where they have another length."""
    length = 0
    opening = following.opening() if following is not None else ()
    for data in chunks.fetch(order.payload, order.lease, order.chunks, leases.clear_command(order.marker), *opening):
        length += len(data)
        yield data
    if length != order.length:
        raise IntegrityError(f"{length} bytes are buffered, expected {order.length}")


def _needed(order: StoreRequest) -> bool:
    """Return whether the run is still to be stored under its lease."""
    current = Transfer.objects.filter(pk=order.transfer, lease=order.lease, state=TransferState.LIVE)
    return current.filter(position__lte=order.offset).exists() and not _covered(order)


def _drop_void(order: StoreRequest) -> None:
    """Remove the chunks of a transfer that has ended, or of an earlier lease: nobody will ask for them again."""
    if not Transfer.objects.filter(pk=order.transfer, lease=order.lease, state=TransferState.LIVE).exists():
        with contextlib.suppress(BufferUnavailable):  # then they expire
            chunks.drop(order.payload, order.lease, order.chunks)


def _covered(order: StoreRequest) -> bool:
    """Return whether any segment overlaps the run: another attempt was faster."""
    end = order.offset + order.length
    before = Segment.objects.filter(payload_id=order.payload, offset__lt=end).order_by("-offset")
    last = before.values_list("offset", "length").first()
    return last is not None and sum(last) > order.offset


class _LimitsMissing(Exception):
    """The row of an upload of unknown size has no limits: a process of an earlier version made it."""


def _commit(order: StoreRequest, name: str, worker: str, following: Following | None) -> None:
    """Commit the segment's row under its lease, the payload's completion with it; a loser deletes only its own file."""
    alias, completed, settled, position = conf.current().storage, False, False, 0
    ending_now = _ending(order, alias, name) if order.completes else None
    try:
        with sql.atomic():
            locked = uploads.lock_under(order.payload, order.transfer, order.lease)
            beyond = _room(order, locked.position)
            _INSERT.run([(order.payload, alias, name, order.offset, order.length)])
            if locked.size is None:
                _grow(order, locked)
            position = _advance(order, locked.position, beyond, worker)
            completed = ending_now is not None and _complete(order, position, *ending_now)
            settled = True
    except _LimitsMissing:
        return _commit_with_limits(order, name, worker, following)
    except StaleLease:
        files.delete(alias, name)
        _drop_void(order)
    except Refused:  # a quota too: as it grows, both are `too_large` (PROTOCOL section 5)
        files.delete(alias, name)
        outcomes.fail(order.payload, "too_large")
        return
    except BaseException:
        # A connection that is lost at COMMIT does not tell whether the row is there now: whoever waits asks again, and
        # a file that nobody names is found by the sweep.
        if not settled:
            files.delete(alias, name)
        raise
    else:
        _settle(order, position, worker, following, completed=completed)
        return
    _tell_position(order, worker)


def _commit_with_limits(order: StoreRequest, name: str, worker: str, following: Following | None) -> None:
    """Ask for the limits that an earlier version did not keep, and commit."""
    try:
        admission.keep_limits(order.payload)
    except BaseException:
        files.delete(conf.current().storage, name)
        raise
    _commit(order, name, worker, following)


def _ending(order: StoreRequest, alias: str, name: str) -> tuple[str, list[Any]] | None:
    """Return digest and recipients of a payload that this segment completes, None where that is left to sealing."""
    digest = _digest(order, alias, name)
    try:
        return None if digest is None else (digest, recipients.of_payload(order.payload))
    except PolicyUnavailable:
        return None


def _digest(order: StoreRequest, alias: str, name: str) -> str | None:
    """Return the SHA-256 of a payload whose last segment has just been written, None where that is left to sealing."""
    if order.offset and not _all_before(order):
        return None
    return digests.of_whole(
        Segment(payload_id=order.payload, storage=alias, name=name, offset=order.offset, length=order.length)
    )


def _all_before(order: StoreRequest) -> bool:
    """Return whether everything before the last run is stored. The run is often the shortest: wait a moment for others.

    They were asked for before it. Should they take longer, nothing is lost: it is they who are waited for then.
    """
    for look in range(MOST_LOOKS):
        if look:
            time.sleep(LOOK_SECONDS)
        lease, position, _ = uploads.position(order.transfer)
        if lease != order.lease or position >= order.offset:
            return position == order.offset
    return False


def _settle(order: StoreRequest, position: int, worker: str, following: Following | None, *, completed: bool) -> None:
    """Do what comes behind the commit: wake who waits, drop the chunks, hash what is stored.

    Told first: an ack waits for it. The row was ours until it was committed, so what it said needs no question.
    """
    opening = following.opening_late() if following is not None and not completed else ()
    told = notify.waking(order.payload, "stored", lease=order.lease, position=position, worker=worker)
    ahead = digests.can_hash_ahead() and not completed
    state = leases.hold_digest_command(order.payload) if ahead else leases.drop_digest_command(order.payload)
    try:
        *_, record = exchange.run_commands(
            *opening, told, chunks.drop_command(order.payload, order.lease, order.chunks), state
        )
    except BufferUnavailable as error:  # whoever waits looks for itself, and the chunks expire
        logger.warning("segment at %d of %s is stored, nobody told: %s", order.offset, order.payload, error)
        return
    if ahead:
        digests.hash_ahead(order.payload, record)


def _room(order: StoreRequest, position: int) -> list[Run]:
    """Return the segments that were stored beyond `position`, in order.

    Raises `StaleLease` where the run is stored already, by another attempt that was faster.
    """
    beyond = _BEYOND.fetch(order.payload, position)
    end = order.offset + order.length
    if position > order.offset or any(at < end and at + length > order.offset for at, length in beyond):
        raise StaleLease("another attempt stored this run")
    return beyond


def _complete(order: StoreRequest, position: int, digest: str, users: list[Any]) -> bool:
    """Complete a payload of which this was the last segment to be stored, if its digest is the expected one.

    Otherwise it is left to sealing, which looks twice before it fails anything.
    """
    payload = _payload_of(order)
    uploads.learn(payload, order.ends, order.sha256 or None)
    if payload.state != PayloadState.STORING or position != payload.size:
        return False
    if not {payload.expected_sha256, order.sha256} <= {"", digest}:
        return False
    outcomes.complete_locked(payload, digest, users)
    return True


def _payload_of(order: StoreRequest) -> Payload:
    """Return the payload, locked with its transfer, as far as completing needs it; charging has changed it."""
    for owner, state, size, expected, keep, reserved, max_size, max_stored in _PAYLOAD.fetch(order.payload):
        return Payload(
            id=order.payload,
            owner_id=owner,
            state=state,
            size=size,
            expected_sha256=expected,
            keep=bool(keep),
            reserved=reserved,
            max_size=max_size,
            max_stored=max_stored,
        )
    return Payload.objects.get(pk=order.payload)


def _grow(order: StoreRequest, locked: uploads.Locked) -> None:
    """Charge the quota with a segment of a payload whose size nobody knew at the offer; learn it with its last one.

    By the limits in its row: no site code runs here. Raises `Refused`, and `_LimitsMissing`.
    """
    if locked.max_size is None or locked.max_stored is None:
        raise _LimitsMissing
    payload = _payload_of(order)
    admission.check_size(order.offset + order.length, locked.max_size)
    if not quotas.grow(payload, locked.max_stored, order.length):
        raise Refused("quota", "the user's quota is used up")
    uploads.learn(payload, order.ends, None)


def _advance(order: StoreRequest, position: int, beyond: list[Run], worker: str) -> int:
    """Move the position over every segment that joins on; return it."""
    position = _joined(position, sorted([*beyond, (order.offset, order.length)]))
    now, expires = _times()
    # Its connection may have gone while the run was stored.
    _ADVANCE.run(position, now, expires, worker, "", WaitingFor.CLIENT.value, "", order.transfer)
    return position


def _joined(position: int, segments: list[Run]) -> int:
    """Return how far the segments reach from `position` on without a gap."""
    for offset, length in segments:
        if offset != position:
            break
        position += length
    return position


def _times() -> tuple[datetime.datetime, datetime.datetime]:
    """Return when a transfer that moves now has moved, and when it expires."""
    now = timezone.now()
    return now, now + datetime.timedelta(seconds=conf.current().upload_expiry)


def progressed(row: Transfer) -> None:
    """Note progress: the transfer expires so much later."""
    row.progressed_at, row.expires_at = _times()
    row.waiting_for = WaitingFor.NOTHING if row.channel else WaitingFor.CLIENT


def _tell_position(order: StoreRequest, worker: str) -> None:
    lease, position, _ = uploads.position(order.transfer)
    notify.wake(order.payload, "stored", lease=lease, position=position, worker=worker)
