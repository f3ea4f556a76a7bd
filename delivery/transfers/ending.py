"""Ending early: cancel, fail, expire. Frees what was held; files go after the change has committed."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.utils import timezone

from delivery import notify
from delivery.models import Direction, MissingFile, Payload, PayloadState, Segment, Transfer, TransferState
from delivery.storage import files, payloads
from delivery.transfers import outbox, quotas, sql, timeline

OVER = (PayloadState.FAILED, PayloadState.CANCELLED, PayloadState.EXPIRED)


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
