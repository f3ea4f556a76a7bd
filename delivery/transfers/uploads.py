"""Uploads: opening, resuming, detaching. Every function runs in a thread and talks to the database.

An accepted offer raises the transfer's lease; what runs under an older one commits nothing.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from django.db import IntegrityError
from django.utils import timezone

from delivery import conf, dispatch
from delivery.errors import Refused, StaleLease
from delivery.models import Address, Direction, Payload, PayloadState, Segment, Transfer, TransferState, WaitingFor
from delivery.protocol.codes import REJECT_CODES
from delivery.protocol.messages import UploadOffer
from delivery.storage import payloads
from delivery.transfers import admission, quotas, sql, timeline
from delivery.transfers.admission import Admission
from delivery.transfers.holders import Holder
from delivery.transfers.sql import Statement

BUSY_SECONDS = 2.0
_SIZE = Statement(Payload, "SELECT {size}, {max_size}, {max_stored} FROM {table} WHERE {id} = %s", "id")
_LEARN = Statement(
    Payload,
    "UPDATE {table} SET {size} = %s, {expected_sha256} = %s WHERE {id} = %s",
    *("size", "expected_sha256", "id"),
)
_POSITION = Statement(
    Transfer,
    "SELECT {position} FROM {table} WHERE {id} = %s AND {lease} = %s AND {state} = %s",
    *("id", "lease", "state"),
)


@dataclass(frozen=True, slots=True)
class Opened:
    """An upload that may go on: under `lease`, from byte `stored` on."""

    transfer: UUID
    payload: UUID
    lease: int
    stored: int
    size: int | None
    max_size: int  # bytes, where the size is unknown
    user: Any  # whose it is, by primary key
    inline: bool
    hold: bool  # nobody could store its chunks now: no credit until somebody can
    expires: datetime.datetime
    displaced: str  # channel of the connection that held it until now; empty where none did


@dataclass(frozen=True, slots=True)
class FinishedUpload:
    """An upload that is complete. `fresh`: by what came with this very offer."""

    payload: UUID
    size: int
    sha256: str
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Earlier:
    """What an earlier lease of a live upload may have left in the buffer."""

    transfer: UUID
    payload: UUID
    lease: int
    stored: int
    size: int | None
    channel: str


def find(user: Any, holder: Holder, offer: UploadOffer) -> Earlier | None:
    """Return the live upload that `user` began under the offer's id, None where there is none.

    Raises `Refused` where the offer will be refused: then whoever holds the upload is not to be disturbed.
    """
    key = UUID(offer.transfer)
    if not admission.known(user, key):
        return None
    row = (
        Transfer.objects.select_related("payload")
        .filter(user_id=user, direction=Direction.UPLOAD, key=key, state=TransferState.LIVE, lease__gt=0)
        .first()
    )
    if row is None or row.payload.inline is not None or row.payload.state != PayloadState.STORING:
        return None
    _check_same(row, offer)
    _check_newest(row, holder)
    return Earlier(row.id, row.payload_id, row.lease, row.position, row.payload.size, row.channel)


def open_upload(
    user: Any, holder: Holder, offer: UploadOffer, admitted: Admission | None, *, workers: bool
) -> Opened | FinishedUpload:
    """Take an offer: begin a new upload, or resume the one that has its id.

    `admitted`: what `admission.ask` said of this very offer. `workers`: whether any worker lives; without one, nothing new
    that needs one is taken, and what resumes gets no credit yet. Raises `Refused` with a reject code of PROTOCOL section 2; a refused offer changes nothing.
    """
    key = UUID(offer.transfer)
    for _ in range(3):
        try:
            with sql.atomic():
                row = _locked(user, key)
                if row is None:
                    return _begin(user, holder, offer, admitted, workers=workers)
                return _resume(row, holder, offer, admitted, workers=workers)
        except IntegrityError:
            continue  # another connection began the same upload in this moment: resume it
    raise Refused("busy", retry_after=1.0)


def _locked(user: Any, key: UUID) -> Transfer | None:
    if not admission.known(user.pk, key):
        return None
    return sql.lock_with_payloads(Transfer.objects.filter(user=user, direction=Direction.UPLOAD, key=key)).first()


def _begin(user: Any, holder: Holder, offer: UploadOffer, admitted: Admission | None, *, workers: bool) -> Opened:
    if admitted is None:  # its rows went while the policy was asked
        raise Refused("busy", retry_after=1.0)
    inline = offer.size is not None and offer.size <= conf.current().inline_limit
    admission.check_size(offer.size or 0, admitted.max_size)
    if not inline and not workers:
        queue = dispatch.queue_of(dispatch.STORE)
        raise Refused("busy", f"no live worker takes the tasks of the queue {queue!r}", retry_after=BUSY_SECONDS)
    payload = _new_payload(user, offer, admitted, inline=inline)
    quotas.reserve(user, admitted.quota, payload.reserved + (payload.overhead or 0), live=not inline)
    payload.save(force_insert=True)
    Address.objects.bulk_create(Address(payload=payload, address=address) for address in admitted.addresses)
    row = Transfer(direction=Direction.UPLOAD, payload=payload, user=user, key=UUID(offer.transfer))
    _hold(row, holder)
    row.save(force_insert=True)
    timeline.note("begun", payload=payload.id, transfer=row.id, size=offer.size, addresses=len(admitted.addresses))
    return _opened(row, payload, displaced="", hold=False)


def _new_payload(user: Any, offer: UploadOffer, admitted: Admission, *, inline: bool) -> Payload:
    """Return the row of a new upload, not saved."""
    name = admission.clean_name(offer.name)
    return Payload(
        owner=user,
        reserved=offer.size or 0,
        overhead=admission.overhead(name, offer.meta),
        max_size=admitted.max_size,
        max_stored=admitted.max_stored,
        name=name,
        content_type=admission.clean_type(offer.content_type),
        meta=dict(offer.meta),
        size=offer.size,
        expected_sha256=offer.sha256 or "",
        inline=b"" if inline else None,
        keep=not admitted.addresses,
    )


def _resume(
    row: Transfer, holder: Holder, offer: UploadOffer, admitted: Admission | None, *, workers: bool
) -> Opened | FinishedUpload:
    payload = row.payload
    _check_same(row, offer)
    if payload.state == PayloadState.COMPLETE:
        return FinishedUpload(payload.id, payload.size or 0, payload.sha256)
    if row.state != TransferState.LIVE or payload.state not in admission.LIVE_PAYLOADS:
        raise Refused(_code_of(row))
    if admitted is None:
        raise Refused("busy", retry_after=1.0)
    _check_newest(row, holder)
    displaced = row.channel if row.channel != holder.channel else ""
    _drop_beyond_gap(row)
    if payload.size is None:
        _hold_to(payload, admitted, row.position)
    learn(payload, offer.size, offer.sha256)
    _hold(row, holder)
    row.save()
    timeline.note("resumed", payload=payload.id, transfer=row.id, position=row.position, lease=row.lease)
    return _opened(row, payload, displaced, hold=payload.inline is None and not workers)


def _check_newest(row: Transfer, holder: Holder) -> None:
    """Refuse an offer on an older connection of the client that holds the transfer (PROTOCOL section 2)."""
    if row.client == holder.client and row.channel and row.session_order > holder.order:
        raise Refused("taken_over")


def _check_same(row: Transfer, offer: UploadOffer) -> None:
    """Refuse an offer whose size or digest contradicts what is stored; null contradicts nothing."""
    payload = row.payload
    digest = payload.sha256 or payload.expected_sha256
    if offer.size is not None and payload.size is not None and offer.size != payload.size:
        raise Refused("mismatch", f"{payload.size} bytes were offered before, {offer.size} now")
    if offer.size is not None and offer.size < row.position:
        raise Refused("mismatch", f"{row.position} bytes are stored, {offer.size} are offered now")
    if offer.sha256 is not None and digest and offer.sha256 != digest:
        raise Refused("mismatch", "another SHA-256 than before")


def _hold_to(payload: Payload, admitted: Admission, position: int) -> None:
    """Hold an upload of unknown size to the limits of its newest offer. Raises `Refused` where it is beyond them."""
    admission.check_size(position, admitted.max_size)
    payload.max_size, payload.max_stored = admitted.max_size, admitted.max_stored
    Payload.objects.filter(pk=payload.pk).update(max_size=payload.max_size, max_stored=payload.max_stored)


def learn(payload: Payload, size: int | None, sha256: str | None) -> None:
    """Keep the size and digest of a payload that were not known before, inside the transaction that has its row locked.

    A size that is learned is admitted now, by the limits in the row, and charged. Raises `Refused` with `too_large` or
    `quota`.
    """
    before = (payload.size, payload.expected_sha256)
    if payload.size is None and size is not None:
        _charge_all(payload, size)
    payload.size = size if payload.size is None else payload.size
    payload.expected_sha256 = payload.expected_sha256 or sha256 or ""
    if before != (payload.size, payload.expected_sha256):
        _LEARN.run(payload.size, payload.expected_sha256, payload.id)


def _charge_all(payload: Payload, size: int) -> None:
    """Charge a payload with all of its bytes, of which some are charged already."""
    if payload.max_size is not None:
        admission.check_size(size, payload.max_size)
    most = quotas.MOST_BYTES if payload.max_stored is None else payload.max_stored
    if size != payload.reserved and not quotas.grow(payload, most, size - payload.reserved):
        raise Refused("quota", f"at most {most} bytes")


def _code_of(row: Transfer) -> str:
    """Return the reject code that tells how a transfer ended."""
    if row.state == TransferState.EXPIRED or row.payload.state == PayloadState.EXPIRED:
        return "expired"
    return row.failure if row.failure in REJECT_CODES else "cancelled"


def _hold(row: Transfer, holder: Holder) -> None:
    row.lease += 1
    row.client, row.session, row.session_order, row.channel = (
        holder.client,
        holder.session,
        holder.order,
        holder.channel,
    )
    row.waiting_for = WaitingFor.NOTHING
    row.progressed_at, row.expires_at = progress_times()


def progress_times() -> tuple[datetime.datetime, datetime.datetime]:
    """Return when an upload that moves now has moved, and when it expires."""
    now = timezone.now()
    return now, now + datetime.timedelta(seconds=conf.current().upload_expiry)


def progressed(row: Transfer) -> None:
    """Note progress: the upload expires so much later."""
    row.progressed_at, row.expires_at = progress_times()
    row.waiting_for = WaitingFor.NOTHING if row.channel else WaitingFor.CLIENT


def _drop_beyond_gap(row: Transfer) -> None:
    """Remove segments that do not join on to the position: their chunks will be sent again."""
    stray = list(Segment.objects.filter(payload_id=row.payload_id, offset__gte=row.position))
    if not stray:
        return
    Segment.objects.filter(pk__in=[segment.pk for segment in stray]).delete()
    if row.payload.size is None:  # they were charged as they came, and will be again
        quotas.grow(row.payload, quotas.MOST_BYTES, -sum(segment.length for segment in stray))
    sql.on_commit(lambda: payloads.delete_files(stray))


def _opened(row: Transfer, payload: Payload, displaced: str, *, hold: bool) -> Opened:
    inline = payload.inline is not None
    most = conf.current().max_payload
    return Opened(
        transfer=row.id,
        payload=payload.id,
        lease=row.lease,
        stored=row.position,
        size=payload.size,
        max_size=most if payload.max_size is None else payload.max_size,
        user=row.user_id,
        inline=inline,
        hold=hold,
        expires=row.expires_at or timezone.now(),
        displaced=displaced,
    )


def locked_under(transfer: UUID, lease: int) -> Transfer:
    """Return the transfer's row, locked with its payload's, if `lease` is its current one. Call it inside a transaction.

    Raises `StaleLease` where a newer writer holds it, or where it has ended.
    """
    rows = Transfer.objects.filter(pk=transfer, lease=lease, state=TransferState.LIVE)
    row = sql.lock_with_payloads(rows).first()
    if row is None:
        raise _stale(transfer, lease)
    return row


class Locked(NamedTuple):
    """An upload whose rows are locked: bytes stored in order, its size, what it may grow to."""

    position: int
    size: int | None
    max_size: int | None
    max_stored: int | None


def lock_under(payload: UUID, transfer: UUID, lease: int) -> Locked:
    """Lock an upload as `locked_under` does, its payload first; return what a segment is committed by.

    For what each task does: a tenth of the processor time of reading both rows whole. Raises `StaleLease`.
    """
    sizes = _SIZE.fetch(payload, lock=True)
    positions = _POSITION.fetch(transfer, lease, TransferState.LIVE.value, lock=True)
    if not sizes or not positions:
        raise _stale(transfer, lease)
    return Locked(positions[0][0], *sizes[0])


def _stale(transfer: UUID, lease: int) -> StaleLease:
    return StaleLease(f"lease {lease} of {transfer} is not the current one")


def rewind(transfer: UUID, lease: int) -> tuple[int, int]:
    """Fence what is in flight after chunks were lost; return the new lease and the position in bytes.

    Raises `StaleLease`.
    """
    with sql.atomic():
        row = locked_under(transfer, lease)
        _drop_beyond_gap(row)
        row.lease += 1
        row.save(update_fields=["lease"])
    timeline.note("lost", payload=row.payload_id, transfer=transfer, position=row.position)
    return row.lease, row.position


def position(transfer: UUID) -> tuple[int, int, str]:
    """Return (lease, position in bytes, state) of a transfer as the database has them now. (0, 0, "") where it is gone."""
    found = Transfer.objects.filter(pk=transfer).values_list("lease", "position", "state").first()
    return found or (0, 0, "")


@dataclass(frozen=True, slots=True)
class DetachedUpload:
    """The connection `session` holds an upload under `lease` no more. `close_code`: of the connection, None where it stays."""

    transfer: UUID
    session: str
    lease: int
    close_code: int | None

    def note(self) -> None:
        """Note it; a newer holder is left alone."""
        mine = Transfer.objects.filter(pk=self.transfer, session=self.session, lease=self.lease)
        mine.filter(state=TransferState.LIVE).update(
            client="", session="", channel="", waiting_for=WaitingFor.CLIENT, last_close_code=self.close_code
        )
        timeline.note("detached", transfer=self.transfer, code=self.close_code)


def waiting(transfer: UUID, lease: int, what: WaitingFor) -> None:
    """Note what a live transfer waits for; one that nobody holds any more waits for its client."""
    held = Transfer.objects.filter(pk=transfer, lease=lease, state=TransferState.LIVE).exclude(channel="")
    held.update(waiting_for=what)
