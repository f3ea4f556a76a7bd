"""Completing: a payload whose digest agrees becomes visible, its recipients get their deliveries, the site its notice."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.contrib.auth import get_user_model
from django.utils import timezone

from delivery import conf, notify, policy
from delivery.models import Address, Direction, Event, Payload, PayloadState, Transfer, TransferState
from delivery.transfers import ending, outbox, quotas, recipients, sql, timeline
from delivery.transfers.sql import Statement

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
            ending.fail(payload_id, "digest", keep_files=payload.completed_at is not None)  # revived, in vain
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
    payload.expires_at = None if payload.keep else now + (payload.lifetime or _default_lifetime())
    _COMPLETE.run(payload.state.value, sha256, now, payload.expires_at, "", payload.id)
    done = (TransferState.DONE.value, now, payload.size or 0, "", "", "")
    _END_UPLOAD.run(*done, payload.id, Direction.UPLOAD.value, TransferState.LIVE.value)
    addresses = [address for (address,) in _ADDRESSES.fetch(payload.id)]
    # The users' own addresses, too: a group's members have not all subscribed to it.
    told = {*addresses, *(f"{policy.USER}{user}" for user in users)}
    if revived:
        told |= _deliver_again(payload)
    else:
        quotas.completed(payload)
        outbox.add("payload_stored", payload)
    create_for_users(payload, users)
    timeline.note("complete", payload=payload.id, size=payload.size)
    sql.on_commit(lambda: _announce(payload, told))


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


def _default_lifetime() -> datetime.timedelta:
    return datetime.timedelta(seconds=conf.current().payload_expiry)


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
