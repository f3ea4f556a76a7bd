"""How payloads and transfers end: complete; or cancelled, failed, expired.

A payload whose digest agrees becomes visible, its recipients get their deliveries, and the site gets its notice. A payload
that ends early releases its quota. Its files are deleted after the commit, and the holders of its transfers are notified then.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from django.contrib.auth import get_user_model
from django.db.models import QuerySet
from django.utils import timezone

from delivery import conf, notify, policy
from delivery.models import (
    Address,
    Direction,
    Event,
    MissingFile,
    Payload,
    PayloadState,
    Segment,
    Transfer,
    TransferState,
)
from delivery.storage import files, payloads
from delivery.transfers import outbox, quotas, recipients, sql, timeline
from delivery.transfers.sql import Statement

OVER = (PayloadState.FAILED, PayloadState.CANCELLED, PayloadState.EXPIRED)
_COMPLETE = Statement(
    Payload,
    "UPDATE {table} SET {state} = %s, {sha256} = %s, {completed_at} = %s, {expires_at} = %s, {sealer} = %s,"
    " {sealing_at} = NULL WHERE {id} = %s",
    *("state", "sha256", "completed_at", "expires_at", "sealer", "id"),
)
_END_UPLOAD = Statement(
    Transfer,
    "UPDATE {table} SET {state} = %s, {ended_at} = %s, {position} = %s, {client} = %s, {channel} = %s,"
    " {waiting_for} = %s WHERE {payload} = %s AND {direction} = %s AND {state} = %s",
    *("state", "ended_at", "position", "client", "channel", "waiting_for", "payload", "direction", "state"),
)
_ADDRESSES = Statement(Address, "SELECT {address} FROM {table} WHERE {payload} = %s", "payload")


def complete(payload_id: UUID, sha256: str, *, sealer: str | None = None) -> bool:
    """Complete a payload whose stored bytes have the digest `sha256`, or fail it where another was promised.

    `sealer`: complete only if that task still holds the claim. Returns whether the payload is complete now. Raises
    `PolicyUnavailable` where its recipients can't be asked for.
    """
    users = recipients.of_payload(payload_id)
    with sql.atomic():
        unfinished = (PayloadState.STORING, PayloadState.SEALING)
        rows = sql.lock(Payload.objects.filter(pk=payload_id, state__in=unfinished))
        payload = (rows if sealer is None else rows.filter(sealer=sealer)).first()
        if payload is None:
            return False
        if payload.expected_sha256 and payload.expected_sha256 != sha256:
            fail(payload_id, "digest", keep_files=payload.completed_at is not None)  # revived, in vain
            return False
        complete_locked(payload, sha256, users)
    return True


def complete_locked(payload: Payload, sha256: str, users: Sequence[Any]) -> None:
    """Complete a payload inside the caller's transaction; recipients and waiters hear of it once it has committed.

    `users`: the primary keys of its recipients, asked for before the transaction (`recipients.of_payload`). Each gets one
    delivery; who has one keeps it.
    """
    now, revived = timezone.now(), payload.completed_at is not None
    payload.state, payload.sha256, payload.completed_at = PayloadState.COMPLETE, sha256, now
    payload.sealing_at, payload.sealer = None, ""
    payload.expires_at = expiry(payload, now)
    _COMPLETE.run(payload.state.value, sha256, now, payload.expires_at, "", payload.id)
    done = (TransferState.DONE.value, now, payload.size or 0, "", "", "")
    _END_UPLOAD.run(*done, payload.id, Direction.UPLOAD.value, TransferState.LIVE.value)
    addresses = [address for (address,) in _ADDRESSES.fetch(payload.id)]
    told = addresses_to_tell(addresses, users)
    if revived:
        told |= _deliver_again(payload)
    else:
        quotas.completed(payload)
        outbox.add("payload_stored", payload)
    create_for_users(payload, users)
    timeline.note("complete", payload=payload.id, size=payload.size)
    announce_on_commit(payload, told)


def _deliver_again(payload: Payload) -> set[str]:
    """Replace the deliveries that failed with a payload by new ones; return their users' addresses.

    New ids: clients and connections that were told of the end of the old ones take no more notice of these.
    """
    users = []
    failed = payload.transfers.filter(direction=Direction.DELIVERY, state=TransferState.FAILED)
    for row in list(failed.order_by("pk")):
        fresh = delivery_of(payload, row.user_id)
        Event.objects.filter(transfer=row.pk).update(transfer=fresh.pk)
        row.delete()
        fresh.save(force_insert=True)
        users.append(row.user_id)
    return {f"{policy.USER}{user}" for user in users}


def expiry(payload: Payload, completed: datetime.datetime) -> datetime.datetime | None:
    """Return when a payload expires that is complete at `completed`, None for one that is kept."""
    if payload.keep:
        return None
    return completed + (payload.lifetime or datetime.timedelta(seconds=conf.current().payload_expiry))


def addresses_to_tell(addresses: Iterable[str], users: Iterable[Any]) -> set[str]:
    """Return who hears that a payload has come: its addresses and those of its recipients (primary keys).

    A group's members have not all subscribed to it.
    """
    return {*addresses, *(f"{policy.USER}{user}" for user in users)}


def announce_on_commit(payload: Payload, addresses: set[str]) -> None:
    """Tell `addresses` and whoever waits of a complete payload, once the surrounding transaction has committed."""
    sql.on_commit(lambda: _announce(payload, addresses))


def _announce(payload: Payload, addresses: set[str]) -> None:
    notify.wake(payload.id, "sealed", size=payload.size, sha256=payload.sha256)
    for address in addresses:
        notify.tell_group(address, "waiting", address=address)


def tell(payload_id: UUID) -> None:
    """Wake who waits for the end of sealing, if it is over already."""
    row = Payload.objects.filter(pk=payload_id).values_list("state", "size", "sha256", "failure").first()
    if row and row[0] == PayloadState.COMPLETE:
        notify.wake(payload_id, "sealed", size=row[1], sha256=row[2])
    elif row and row[0] in (PayloadState.FAILED, PayloadState.CANCELLED, PayloadState.EXPIRED):
        notify.wake(payload_id, "ended", code=row[3] or "cancelled")


def outcome(payload_id: UUID) -> tuple[str, int, str, str]:
    """Return (state, size, digest, failure) of a payload as the database has it now; empty strings where it is gone."""
    row = Payload.objects.filter(pk=payload_id).values_list("state", "size", "sha256", "failure").first()
    return (row[0], row[1] or 0, row[2], row[3]) if row else ("", 0, "", "")


def delivery_of(payload: Payload, user: Any) -> Transfer:
    """Return a new row, not saved: the delivery of a payload to a user (a primary key)."""
    row = Transfer(
        direction=Direction.DELIVERY,
        payload=payload,
        user_id=user,
        progressed_at=timezone.now(),
        expires_at=payload.expires_at,
    )
    row.key = row.id
    return row


def create_for_users(payload: Payload, users: Sequence[Any]) -> None:
    """Make the deliveries of a payload to users; those who have one keep it, and who is deleted by now gets none."""
    there = sql.keep_rows(get_user_model(), users)
    Transfer.objects.bulk_create([delivery_of(payload, user) for user in there], ignore_conflicts=True)


# -- ending early ------------------------------------------------------------------------------------------------------


def cancel_payload(payload_id: UUID, *, by: str) -> bool:
    """Cancel a payload and all its transfers; its files are deleted. Returns whether there was anything to do.

    `by`: the address of who asks, for the timeline.
    """
    return _end_payload(payload_id, PayloadState.CANCELLED, "cancelled", by=by)


def expire_payload(payload_id: UUID, *, by: str) -> bool:
    """End a payload's time now. Returns whether there was anything to do."""
    return _end_payload(payload_id, PayloadState.EXPIRED, "expired", by=by)


def fail(payload_id: UUID, code: str, *, keep_files: bool = False) -> bool:
    """Fail a payload with an abort code; nobody gets to see what was stored.

    `keep_files`: what is stored of it stays until its time is up or somebody cancels it, so that it can be revived.
    """
    return _end_payload(payload_id, PayloadState.FAILED, code, by="", keep_files=keep_files)


def cancel_transfer(transfer_id: UUID, *, by: str) -> bool:
    """Cancel one transfer: an upload with its payload, a delivery for its user alone. Returns whether it was live."""
    row = Transfer.objects.filter(pk=transfer_id).first()
    if row is None or row.state != TransferState.LIVE:
        return False
    if row.direction == Direction.UPLOAD:
        return cancel_payload(row.payload_id, by=by)
    with sql.atomic():
        live = Transfer.objects.filter(pk=transfer_id, state=TransferState.LIVE)
        if not _end_transfers(live, TransferState.CANCELLED, "cancelled"):
            return False
    timeline.note("cancelled", payload=row.payload_id, transfer=row.id, by=by)
    return True


def _end_payload(payload_id: UUID, state: PayloadState, code: str, *, by: str, keep_files: bool = False) -> bool:
    with sql.atomic():
        payload = sql.lock(Payload.objects.filter(pk=payload_id)).first()
        if payload is None:
            return False
        before, live = payload.state, payload.completed_at is None and payload.inline is None
        if before in OVER and not (state != PayloadState.FAILED and _is_kept(payload)):
            return False
        payload.state, payload.failure, payload.inline = state, code, None
        payload.sealing_at, payload.sealer = None, ""
        payload.save(update_fields=["state", "failure", "inline", "sealing_at", "sealer"])
        segments = _keep_segments(payload) if keep_files else _forget_segments(payload)
        _end_transfers(payload.transfers.filter(state=TransferState.LIVE), TransferState(state.value), code)
        if before not in OVER:
            quotas.ended(payload, live=live)
        if before == PayloadState.COMPLETE and state == PayloadState.EXPIRED:
            outbox.add("payload_expired", payload)
        sql.on_commit(lambda: _free(payload, segments, code))
    timeline.note(state.value, payload=payload_id, by=by, code=code)
    return True


def _is_kept(payload: Payload) -> bool:
    """Return whether the files of a payload that failed are there still, or some of them."""
    return payload.state == PayloadState.FAILED and MissingFile.objects.filter(pk=payload.pk).exists()


def _keep_segments(payload: Payload) -> list[Segment]:
    now = timezone.now()
    MissingFile.objects.get_or_create(payload=payload, defaults={"since": now, "tried_at": now})
    return []


def _forget_segments(payload: Payload) -> list[Segment]:
    segments = list(payload.segments.all())
    payload.segments.all().delete()
    MissingFile.objects.filter(pk=payload.pk).delete()
    return segments


def _end_transfers(rows: QuerySet[Transfer], state: TransferState, code: str) -> int:
    """End live transfers inside the caller's transaction; their connections hear of it once it has committed."""
    # Locked: a `done` that comes in this moment was first, or comes too late.
    ended = list(sql.lock(rows.select_related("payload"), "self").order_by("pk"))
    held = [(row.id, row.channel) for row in ended if row.channel]
    for row in ended:
        held += [(row.id, channel) for channel in row.clients.exclude(channel="").values_list("channel", flat=True)]
        if row.direction == Direction.UPLOAD and state != TransferState.EXPIRED:
            outbox.add("transfer_failed", row.payload, row)
    now = timezone.now()
    count = Transfer.objects.filter(pk__in=[row.pk for row in ended]).update(
        state=state, failure=code, ended_at=now, client="", session="", channel="", waiting_for=""
    )
    sql.on_commit(lambda: _tell(held, code))
    return count


def _tell(held: list[tuple[UUID, str]], code: str) -> None:
    for transfer, channel in held:
        notify.tell_channel(channel, "ended", transfer=transfer.hex, code=code)


def _free(payload: Payload, segments: list[Any], code: str) -> None:
    payloads.delete_files(segments)
    for alias in {segment.storage for segment in segments if segment.owned}:
        files.delete_folder(alias, payload.id)
    notify.wake(payload.id, "ended", code=code)
