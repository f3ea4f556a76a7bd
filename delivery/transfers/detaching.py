"""Transfers whose connection is gone: many at once where that connection had many. Runs in a thread, queries the database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from django.db import DatabaseError

from delivery.models import Transfer
from delivery.transfers import deliveries, sql, uploads


@dataclass(frozen=True, slots=True)
class DetachedUpload:
    """The connection `session` holds an upload under `lease` no more. `close_code`: of the connection, None where it stays."""

    transfer: UUID
    session: str
    lease: int
    close_code: int | None

    def note(self) -> None:
        uploads.detach(self.transfer, self.session, lease=self.lease, close_code=self.close_code)


@dataclass(frozen=True, slots=True)
class DetachedDelivery:
    """The connection whose channel is `channel` holds a delivery to `client` no more, which is at byte `position`."""

    transfer: UUID
    client: str
    channel: str
    position: int
    close_code: int | None

    def note(self) -> None:
        deliveries.note_positions({(self.transfer, self.client): self.position})
        deliveries.detach(self.transfer, self.client, self.channel, close_code=self.close_code)


Detached = DetachedUpload | DetachedDelivery


def note_all(batch: Sequence[Detached]) -> list[Exception | None]:
    """Note in one transaction that nobody holds these transfers; where that fails, each by itself.

    Returns None for each, or why it could not be noted.
    """
    try:
        with sql.atomic():
            sql.lock_in_order(Transfer.objects.filter(pk__in={one.transfer for one in batch}))
            for one in batch:
                one.note()
    except DatabaseError:
        return [_note(one) for one in batch]
    return [None] * len(batch)


def _note(one: Detached) -> Exception | None:
    try:
        one.note()
    except DatabaseError as error:
        return error
    return None
