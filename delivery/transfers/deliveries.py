"""Deliveries: what waits for a user, who takes it, how far each of a user's clients is.

Every function runs in a thread and talks to the database.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from delivery import policy
from delivery.errors import Refused
from delivery.models import (
    Address,
    ClientPosition,
    ClientState,
    Direction,
    PayloadState,
    Transfer,
    TransferState,
)
from delivery.transfers import completing, events, notices
from delivery.transfers.holders import Holder

MOST_CLIENTS = 8


@dataclass(frozen=True, slots=True)
class Waiting:
    """A delivery that may be offered. `inline`: the bytes themselves, where they are few. `first`: never offered before."""

    transfer: UUID
    payload: UUID
    name: str
    size: int
    sha256: str
    content_type: str
    meta: Mapping[str, str]
    sender: str | None
    expires: datetime.datetime | None
    inline: bytes | None
    first: bool


def waiting(user: Any, client: str, *, known: Collection[UUID], most: int) -> list[Waiting]:
    """Return what is to be offered to a client of `user`, oldest first.

    That is what no client of the user has finished yet and this one has not declined, and what this one began.
    `known`: transfers that the connection has offered already.
    """
    mine = ClientPosition.objects.filter(transfer=OuterRef("pk"), client=client)
    rows = (
        Transfer.objects.filter(user_id=user, direction=Direction.DELIVERY, payload__state=PayloadState.COMPLETE)
        .filter(Q(payload__expires_at=None) | Q(payload__expires_at__gt=timezone.now()))
        .filter(
            (Q(state=TransferState.LIVE) & ~Exists(mine.exclude(state=ClientState.OPEN)))
            | (Q(state=TransferState.DONE) & Exists(mine.filter(state=ClientState.OPEN)))
        )
        .annotate(begun=Exists(mine))
        .exclude(pk__in=list(known))
        .select_related("payload")
        .order_by("created_at", "pk")[:most]
    )
    return [_waiting(row, first=not row.begun) for row in rows]


def _waiting(row: Any, *, first: bool) -> Waiting:
    payload = row.payload
    return Waiting(
        transfer=row.id,
        payload=payload.id,
        name=payload.name,
        size=payload.size,
        sha256=payload.sha256,
        content_type=payload.content_type,
        meta=payload.meta,
        sender=None if payload.owner_id is None else f"{policy.USER}{payload.owner_id}",
        expires=payload.expires_at,
        inline=None if payload.inline is None else bytes(payload.inline),
        first=first,
    )


def join(user: Any, groups: Iterable[str]) -> list[str]:
    """Subscribe a user to groups: return those that the policy allows, with their payloads made deliverable."""
    rules = policy.current()
    allowed = [name for name in groups if rules.may_join(user, name)]
    for name in allowed:
        catch_up(user.pk, policy.GROUP + name)
    return allowed


def catch_up(user: Any, address: str) -> None:
    """Make deliveries to a subscriber of a group for what has arrived for it and has not expired."""
    mine = Transfer.objects.filter(payload=OuterRef("payload"), user_id=user, direction=Direction.DELIVERY)
    missing = (
        Address.objects.filter(address=address, payload__state=PayloadState.COMPLETE)
        .filter(Q(payload__expires_at=None) | Q(payload__expires_at__gt=timezone.now()))
        .exclude(Exists(mine))
        .select_related("payload")
    )
    for found in missing:
        completing.create_for_users(found.payload, [user])


def take(transfer: UUID, holder: Holder, position: int) -> str:
    """Move a delivery to the connection that accepted it, from byte `position` on.

    Returns the channel of an older connection of the same client that held it, else an empty string. Raises `Refused`
    where the delivery is over, or a newer connection of the client holds it.
    """
    now = timezone.now()
    with transaction.atomic():
        row = Transfer.objects.select_for_update(of=("self",)).select_related("payload").filter(pk=transfer).first()
        if row is None or row.payload.state != PayloadState.COMPLETE or row.state not in _OPEN_STATES:
            raise Refused("expired" if row is None or row.state == TransferState.EXPIRED else "cancelled")
        if row.payload.expires_at is not None and row.payload.expires_at <= now:
            raise Refused("expired")
        mine, created = ClientPosition.objects.get_or_create(
            transfer=row, client=holder.client, defaults={"updated_at": now}
        )
        if mine.channel not in ("", holder.channel) and mine.session_order > holder.order:
            raise Refused("taken_over")
        displaced = mine.channel if mine.channel != holder.channel else ""
        mine.state, mine.position, mine.updated_at = ClientState.OPEN, position, now
        mine.session_order, mine.channel = holder.order, holder.channel
        mine.save()
        if created:
            _forget_oldest(row)
        Transfer.objects.filter(pk=row.pk).update(waiting_for="", progressed_at=now)
    events.note("accepted", payload=row.payload_id, transfer=transfer, position=position)
    return displaced


_OPEN_STATES = (TransferState.LIVE, TransferState.DONE)


def _forget_oldest(row: Transfer) -> None:
    """Keep at most eight clients of a transfer."""
    keep = row.clients.order_by("-updated_at").values_list("pk", flat=True)[:MOST_CLIENTS]
    row.clients.exclude(pk__in=list(keep)).delete()


def note_positions(positions: Mapping[tuple[UUID, str], int]) -> None:
    """Write how far clients are. `positions`: (transfer, client) to bytes. One transaction for all."""
    now = timezone.now()
    with transaction.atomic():
        for (transfer, client), position in positions.items():
            ClientPosition.objects.filter(transfer=transfer, client=client).update(position=position, updated_at=now)
            Transfer.objects.filter(pk=transfer, state=TransferState.LIVE, position__lt=position).update(
                position=position, progressed_at=now
            )


def detach(transfer: UUID, client: str, channel: str, *, close_code: int | None) -> None:
    """Note that a connection no longer holds a delivery; a newer one is left alone."""
    if ClientPosition.objects.filter(transfer=transfer, client=client, channel=channel).update(channel=""):
        Transfer.objects.filter(pk=transfer, state=TransferState.LIVE).update(
            waiting_for="client", last_close_code=close_code
        )
        events.note("detached", transfer=transfer, code=close_code)


def finish(transfer: UUID, client: str) -> None:
    """Note that a client has all of it. The first one of a user serves the user."""
    now = timezone.now()
    with transaction.atomic():
        row = Transfer.objects.select_for_update(of=("self",)).select_related("payload").filter(pk=transfer).first()
        if row is None:
            return
        size = row.payload.size or 0
        ClientPosition.objects.update_or_create(
            transfer=row,
            client=client,
            defaults={"state": ClientState.DONE, "position": size, "updated_at": now, "channel": ""},
        )
        if row.state == TransferState.LIVE:
            row.state, row.ended_at, row.position, row.waiting_for = TransferState.DONE, now, size, ""
            row.progressed_at = now
            row.save(update_fields=["state", "ended_at", "position", "waiting_for", "progressed_at"])
            notices.add("payload_delivered", row.payload, row)
            events.note("delivered", payload=row.payload_id, transfer=transfer)


def decline(transfer: UUID, client: str) -> None:
    """Note that a client does not want it, or ended it for good; its user's other clients are still offered it."""
    ClientPosition.objects.update_or_create(
        transfer_id=transfer,
        client=client,
        defaults={"state": ClientState.DECLINED, "updated_at": timezone.now(), "channel": ""},
    )
    events.note("declined", transfer=transfer)
