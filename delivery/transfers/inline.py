"""Inline payloads: few bytes, kept in their database row, taken in by the web process without a worker."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from delivery.models import Payload, PayloadState
from delivery.transfers import outcomes, sql, uploads
from delivery.transfers.segments import progressed
from delivery.transfers.uploads import FinishedUpload


def store(transfer: UUID, lease: int, offset: int, data: bytes) -> int:
    """Store bytes from `offset` on in the payload's row; return the new position in bytes. Raises `StaleLease`."""
    with sql.atomic():
        row = uploads.locked_under(transfer, lease)
        Payload.objects.filter(pk=row.payload_id).update(inline=bytes(row.payload.inline or b"")[:offset] + data)
        row.position = offset + len(data)
        progressed(row)
        row.save(update_fields=["position", "progressed_at", "expires_at", "waiting_for"])
    return row.position


def complete(
    transfer: UUID, lease: int, offset: int, data: bytes, expected: set[str], users: Sequence[Any]
) -> FinishedUpload | None:
    """Store the last bytes and complete the payload, in one transaction.

    `users`: the primary keys of its recipients. `expected`: the digests that the sender gave. Returns None where what is stored has another one: the payload has
    failed. Raises `StaleLease`.
    """
    with sql.atomic():
        payload = uploads.locked_under(transfer, lease).payload
        payload.inline = bytes(payload.inline or b"")[:offset] + data
        payload.size = len(payload.inline)
        digest = hashlib.sha256(payload.inline).hexdigest()
        if expected - {digest}:
            outcomes.fail(payload.pk, "digest")
            return None
        Payload.objects.filter(pk=payload.pk).update(
            inline=payload.inline, size=payload.size, state=PayloadState.SEALING
        )
        outcomes.complete_locked(payload, digest, users)
    return FinishedUpload(payload.pk, payload.size, digest)
