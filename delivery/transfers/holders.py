"""The holder of a transfer: one connection of one client; the newest wins (PROTOCOL section 2, take-over).

The transfers of a lost connection are detached together, since it may have had many. Runs in a thread, queries the database.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from django.db import DatabaseError

from delivery.models import Transfer
from delivery.transfers import sql


@dataclass(frozen=True, slots=True)
class Holder:
    """A connection as the rows know it.

    `order` rises with each welcome (microseconds of Redis's clock); `channel` reaches its consumer through the channel
    layer.
    """

    user: Any  # the primary key
    client: str
    session: str
    order: int
    channel: str


class Detached(Protocol):
    """A transfer that a connection holds no more: `uploads.DetachedUpload`, `deliveries.DetachedDelivery`."""

    @property
    def transfer(self) -> UUID: ...

    def note(self) -> None: ...


def detach_all(batch: Sequence[Detached]) -> list[Exception | None]:
    """Note in one transaction that nobody holds these transfers; where that fails, each by itself.

    Returns None for each, or why it could not be noted.
    """
    try:
        with sql.atomic():
            sql.lock_in_order(Transfer.objects.filter(pk__in={one.transfer for one in batch}))
            for one in batch:
                one.note()
    except DatabaseError:
        return [_detach(one) for one in batch]
    return [None] * len(batch)


def _detach(one: Detached) -> Exception | None:
    try:
        one.note()
    except DatabaseError as error:
        return error
    return None
