"""Accepts of deliveries: a connection takes one, from whoever held it. Many at once where a payload has many recipients.

Runs in a thread and talks to the database.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from django.utils import timezone

from delivery.errors import Refused
from delivery.models import ClientPosition, ClientState, PayloadState, Transfer, TransferState
from delivery.transfers import sql, timeline
from delivery.transfers.holders import Holder
from delivery.transfers.sql import Insert

MOST_CLIENTS = 8  # of a transfer

_OPEN_STATES = (TransferState.LIVE, TransferState.DONE)
_HELD = Insert(
    ClientPosition,
    *("transfer", "client", "state", "position", "updated_at", "session_order", "channel"),
    unique=("transfer", "client"),
    update=("state", "position", "updated_at", "session_order", "channel"),
)

Key = tuple[UUID, str]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The connection `holder` accepted a delivery, from byte `position` on."""

    transfer: UUID
    holder: Holder
    position: int

    @property
    def key(self) -> Key:
        return self.transfer, self.holder.client


def take(batch: Sequence[Accepted]) -> list[str | Refused]:
    """Move deliveries to the connections that accepted them, in one transaction.

    Returns for each the channel of an older connection of the same client that held it, else an empty string; or why it
    cannot have it: the delivery is over, or a newer connection of the client holds it.
    """
    now = timezone.now()
    with sql.atomic():
        rows = _rows({one.transfer for one in batch})
        held = _positions(batch)
        outcomes: list[str | Refused] = []
        taken: dict[Key, ClientPosition] = {}
        for one in batch:
            outcome = _outcome(one, rows.get(one.transfer), held.get(one.key), now)
            if not isinstance(outcome, Refused):
                held[one.key] = taken[one.key] = _held(one, now)
            outcomes.append(outcome)
        _HELD.run([_values(position) for position in taken.values()])
        transfers = {transfer for transfer, _ in taken}
        forget_oldest(transfers)
        Transfer.objects.filter(pk__in=transfers).update(waiting_for="", progressed_at=now)
    for one, outcome in zip(batch, outcomes, strict=True):
        if not isinstance(outcome, Refused):
            payload = rows[one.transfer].payload_id
            timeline.note("accepted", payload=payload, transfer=one.transfer, position=one.position)
    return outcomes


def _rows(transfers: Iterable[UUID]) -> dict[UUID, Transfer]:
    rows = Transfer.objects.select_related("payload").filter(pk__in=transfers).order_by("pk")
    return {row.pk: row for row in sql.lock(rows, "self")}


def _positions(batch: Sequence[Accepted]) -> dict[Key, ClientPosition]:
    found = ClientPosition.objects.filter(
        transfer__in={one.transfer for one in batch}, client__in={one.holder.client for one in batch}
    )
    return {(position.transfer_id, position.client): position for position in found}


def _outcome(one: Accepted, row: Transfer | None, mine: ClientPosition | None, now: datetime.datetime) -> str | Refused:
    if row is None or row.payload.state != PayloadState.COMPLETE or row.state not in _OPEN_STATES:
        return Refused("expired" if row is None or row.state == TransferState.EXPIRED else "cancelled")
    if row.payload.expires_at is not None and row.payload.expires_at <= now:
        return Refused("expired")
    if mine is None:
        return ""
    if mine.state == ClientState.DECLINED:  # its abort was faster through the threads than its accept
        return Refused("cancelled")
    if mine.channel not in ("", one.holder.channel) and mine.session_order > one.holder.order:
        return Refused("taken_over")
    return mine.channel if mine.channel != one.holder.channel else ""


def _held(one: Accepted, now: datetime.datetime) -> ClientPosition:
    return ClientPosition(
        transfer_id=one.transfer,
        client=one.holder.client,
        state=ClientState.OPEN,
        position=one.position,
        updated_at=now,
        session_order=one.holder.order,
        channel=one.holder.channel,
    )


def _values(position: ClientPosition) -> tuple[object, ...]:
    return (
        *(position.transfer_id, position.client, ClientState.OPEN.value, position.position),
        *(position.updated_at, position.session_order, position.channel),
    )


def forget_oldest(transfers: Iterable[UUID]) -> None:
    """Keep at most eight clients of each transfer, inside the caller's transaction (PROTOCOL section 2)."""
    newest: dict[UUID, int] = {}
    rows = ClientPosition.objects.filter(transfer__in=transfers).order_by("-updated_at", "-pk")
    surplus = []
    for transfer, pk in rows.values_list("transfer", "pk"):
        newest[transfer] = newest.get(transfer, 0) + 1
        if newest[transfer] > MOST_CLIENTS:
            surplus.append(pk)
    if surplus:
        ClientPosition.objects.filter(pk__in=surplus).delete()
