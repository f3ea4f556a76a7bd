"""Ending early: cancel, fail, expire. Frees what was held; files go after the change has committed."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from delivery import notify
from delivery.models import Direction, Payload, PayloadState, Transfer, TransferState
from delivery.storage import files, payloads
from delivery.transfers import events, locks, notices, quotas

OVER = (PayloadState.FAILED, PayloadState.CANCELLED, PayloadState.EXPIRED)


def cancel_payload(payload_id: UUID, *, by: str) -> bool:
    """Cancel a payload and all its transfers; its files are deleted. Returns whether there was anything to do.

    `by`: the address of who asks, for the timeline.
    """
    return _end_payload(payload_id, PayloadState.CANCELLED, "cancelled", by=by)


def expire_payload(payload_id: UUID, *, by: str) -> bool:
    """End a payload's time now. Returns whether there was anything to do."""
    return _end_payload(payload_id, PayloadState.EXPIRED, "expired", by=by)


def fail(payload_id: UUID, code: str) -> bool:
    """Fail a payload with an abort code; nobody gets to see what was stored."""
    return _end_payload(payload_id, PayloadState.FAILED, code, by="")


def cancel_transfer(transfer_id: UUID, *, by: str) -> bool:
    """Cancel one transfer: an upload with its payload, a delivery for its user alone. Returns whether it was live."""
    row = Transfer.objects.filter(pk=transfer_id).first()
    if row is None or row.state != TransferState.LIVE:
        return False
    if row.direction == Direction.UPLOAD:
        return cancel_payload(row.payload_id, by=by)
    with transaction.atomic():
        live = Transfer.objects.filter(pk=transfer_id, state=TransferState.LIVE)
        if not _end_transfers(live, TransferState.CANCELLED, "cancelled"):
            return False
    events.note("cancelled", payload=row.payload_id, transfer=row.id, by=by)
    return True


def _end_payload(payload_id: UUID, state: PayloadState, code: str, *, by: str) -> bool:
    with transaction.atomic():
        payload = locks.lock(Payload.objects.filter(pk=payload_id)).exclude(state__in=OVER).first()
        if payload is None:
            return False
        complete = payload.state == PayloadState.COMPLETE
        live = not complete and payload.inline is None
        payload.state, payload.failure, payload.inline = state, code, None
        payload.sealing_at, payload.sealer = None, ""
        payload.save(update_fields=["state", "failure", "inline", "sealing_at", "sealer"])
        segments = list(payload.segments.all())
        payload.segments.all().delete()
        _end_transfers(payload.transfers.filter(state=TransferState.LIVE), TransferState(state.value), code)
        quotas.ended(payload, live=live)
        if complete and state == PayloadState.EXPIRED:
            notices.add("payload_expired", payload)
        transaction.on_commit(lambda: _free(payload, segments, code))
    events.note(state.value, payload=payload_id, by=by, code=code)
    return True


def _end_transfers(rows: QuerySet[Transfer], state: TransferState, code: str) -> int:
    """End live transfers inside the caller's transaction; their connections hear of it once it has committed."""
    # Locked: a `done` that comes in this moment was first, or comes too late.
    ended = list(locks.lock(rows.select_related("payload"), "self").order_by("pk"))
    held = [(row.id, row.channel) for row in ended if row.channel]
    for row in ended:
        held += [(row.id, channel) for channel in row.clients.exclude(channel="").values_list("channel", flat=True)]
        if row.direction == Direction.UPLOAD and state != TransferState.EXPIRED:
            notices.add("transfer_failed", row.payload, row)
    now = timezone.now()
    count = Transfer.objects.filter(pk__in=[row.pk for row in ended]).update(
        state=state, failure=code, ended_at=now, client="", session="", channel="", waiting_for=""
    )
    transaction.on_commit(lambda: _tell(held, code))
    return count


def _tell(held: list[tuple[UUID, str]], code: str) -> None:
    for transfer, channel in held:
        notify.tell_channel(channel, "ended", transfer=transfer.hex, code=code)


def _free(payload: Payload, segments: list[Any], code: str) -> None:
    payloads.delete_files(segments)
    for alias in {segment.storage for segment in segments if segment.owned}:
        files.delete_folder(alias, payload.id)
    notify.wake(payload.id, "ended", code=code)
