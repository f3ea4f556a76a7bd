"""Deliveries: the pending ones of a user, the connection that takes each, and the position of each of the user's clients.

Simultaneous accepts, positions and ends are written in batches, one transaction each. Every function runs in a thread and
queries the database.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.contrib.auth import get_user_model
from django.db.models import Exists, OuterRef, Q, QuerySet, Value
from django.utils import timezone

from delivery import policy
from delivery.errors import Refused
from delivery.models import (
    Address,
    ClientPosition,
    ClientState,
    Direction,
    Payload,
    PayloadState,
    Transfer,
    TransferState,
)
from delivery.transfers import outbox, outcomes, sql, timeline
from delivery.transfers.holders import Holder
from delivery.transfers.sql import Insert, Statement, places

MOST_CLIENTS = 8  # of a transfer
Key = tuple[UUID, str]  # transfer and client

_OPEN_STATES = (TransferState.LIVE, TransferState.DONE)
_HELD = Insert(
    ClientPosition,
    *("transfer", "client", "state", "position", "updated_at", "session_order", "channel"),
    unique=("transfer", "client"),
    update=("state", "position", "updated_at", "session_order", "channel"),
)
_NOTE = Statement(
    ClientPosition,
    "UPDATE {table} SET {position} = %s, {updated_at} = %s WHERE {transfer} = %s AND {client} = %s AND {state} = %s",
    *("position", "updated_at", "transfer", "client", "state"),
)
_PROGRESS = Statement(
    Transfer,
    "UPDATE {table} SET {position} = %s, {progressed_at} = %s WHERE {id} = %s AND {state} = %s AND {position} < %s",
    *("position", "progressed_at", "id", "state", "position"),
)
_POSITIONS = Insert(
    ClientPosition,
    *("transfer", "client", "state", "position", "updated_at"),
    unique=("transfer", "client"),
    update=("state", "position", "updated_at", "channel"),
)
_SERVE = Statement(
    Transfer,
    "UPDATE {table} SET {state} = %s, {ended_at} = %s, {progressed_at} = %s, {position} = %s, {waiting_for} = %s"
    " WHERE {id} = %s AND {state} = %s",
    *("state", "ended_at", "progressed_at", "position", "waiting_for", "id", "state"),
)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A delivery that may be offered. `inline`: the bytes themselves, where they are few. `first`: never offered before.

    `groups`: the names of those through which alone it comes to its user; none where it is addressed to the user as well.
    """

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
    groups: tuple[str, ...] = ()

    def packed(self) -> dict[str, Any]:
        """Return it as a control event carries it."""
        expires = None if self.expires is None else self.expires.isoformat()
        members = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return members | {
            "meta": dict(self.meta),
            "transfer": self.transfer.hex,
            "payload": self.payload.hex,
            "expires": expires,
        }

    @classmethod
    def unpacked(cls, event: Mapping[str, Any]) -> Waiting:
        """Read what `packed` returned, maybe in a process of another version: what this one does not know is ignored."""
        known = {name: event[name] for name in cls.__dataclass_fields__ if name != "groups"}
        known["groups"] = tuple(event.get("groups", ()))  # which earlier versions do not tell
        expires = known["expires"]
        known["expires"] = None if expires is None else datetime.datetime.fromisoformat(expires)
        return cls(**known | {"transfer": UUID(event["transfer"]), "payload": UUID(event["payload"])})


def waiting(user: Any, client: str, *, known: Collection[UUID], most: int, begun: bool) -> list[Waiting]:
    """Return what is to be offered to a client of `user`, oldest first.

    That is what no client of the user has finished yet and this one has not declined. `begun`: also what this client
    began and another one has finished since. `known`: transfers that the connection has offered already.
    """
    mine = ClientPosition.objects.filter(transfer=OuterRef("pk"), client=client)
    fresh = _deliverable(user, TransferState.LIVE).filter(~Exists(mine.exclude(state=ClientState.OPEN)))
    rows = list(fresh.annotate(begun=Exists(mine)).exclude(pk__in=list(known)).order_by("created_at", "pk")[:most])
    if begun and len(rows) < most:
        # A query of its own: in one with the other, the user's whole history would be looked through.
        open_here = ClientPosition.objects.filter(client=client, state=ClientState.OPEN, transfer__user=user)
        left = _deliverable(user, TransferState.DONE).filter(pk__in=open_here.values("transfer"))
        rows += left.annotate(begun=Value(True)).exclude(pk__in=list(known))[: most - len(rows)]
    groups = _groups_of([row.payload_id for row in rows], policy.USER + str(user))
    return [waiting_for(row, row.payload, first=not row.begun, groups=groups.get(row.payload_id, ())) for row in rows]


def _groups_of(payloads: Sequence[UUID], own: str) -> dict[UUID, tuple[str, ...]]:
    """Return the groups through which alone payloads come to the user with the address `own`."""
    found: dict[UUID, list[str]] = {}
    rows = Address.objects.filter(payload__in=payloads).order_by("pk").values_list("payload_id", "address")
    for payload, address in rows if payloads else ():
        found.setdefault(payload, []).append(address)
    return {payload: through(addresses, own) for payload, addresses in found.items()}


def through(addresses: Sequence[str], own: str) -> tuple[str, ...]:
    """Return the names of the groups among `addresses`; none where `own` is one of these."""
    if own in addresses:
        return ()
    return tuple(one.removeprefix(policy.GROUP) for one in addresses if one.startswith(policy.GROUP))


def may_wait(askers: Collection[tuple[Any, str]]) -> list[bool]:
    """Return of each (user, client) whether there may be something that `waiting` returns. Two queries for all of them.

    True says nothing for certain; False does: nothing of the user is live, and the client has left nothing half done.
    """
    live = Transfer.objects.filter(user=OuterRef("pk"), direction=Direction.DELIVERY, state=TransferState.LIVE)
    users = get_user_model()._base_manager.filter(Exists(live), pk__in={user for user, _ in askers})
    awaited = set(users.values_list("pk", flat=True))
    open_here = ClientPosition.objects.filter(client__in={client for _, client in askers}, state=ClientState.OPEN)
    begun = set(open_here.order_by().values_list("client", flat=True).distinct())
    return [user in awaited or client in begun for user, client in askers]


def _deliverable(user: Any, state: TransferState) -> QuerySet[Transfer]:
    rows = Transfer.objects.filter(user_id=user, direction=Direction.DELIVERY, state=state)
    in_time = Q(payload__expires_at=None) | Q(payload__expires_at__gt=timezone.now())
    return rows.filter(in_time, payload__state=PayloadState.COMPLETE).select_related("payload")


def waiting_for(row: Transfer, payload: Payload, *, first: bool = True, groups: tuple[str, ...] = ()) -> Waiting:
    """Return the delivery `row` of a complete payload as something to offer."""
    return Waiting(
        transfer=row.id,
        payload=payload.id,
        name=payload.name,
        size=payload.size or 0,
        sha256=payload.sha256,
        content_type=payload.content_type,
        meta=payload.meta,
        sender=None if payload.owner_id is None else f"{policy.USER}{payload.owner_id}",
        expires=payload.expires_at,
        inline=None if payload.inline is None else bytes(payload.inline),
        first=first,
        groups=groups,
    )


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
        with sql.atomic():
            if sql.keep_rows(Payload, [found.payload_id]):  # else it was deleted since we looked
                outcomes.create_for_users(found.payload, [user])


def arrived(addresses: Collection[str], since: datetime.datetime) -> set[str]:
    """Return those of `addresses` for which something has arrived since then, and nobody has it yet."""
    rows = Transfer.objects.filter(direction=Direction.DELIVERY, state=TransferState.LIVE, created_at__gt=since)
    found = {f"{policy.USER}{user}" for user in rows.order_by().values_list("user_id", flat=True).distinct()}
    # Named one by one, since an index finds those; in most locales PostgreSQL uses none for how a text begins.
    if groups := [address for address in addresses if address.startswith(policy.GROUP)]:
        rows_of_groups = Address.objects.filter(address__in=groups, payload__state=PayloadState.COMPLETE)
        found |= set(
            rows_of_groups.filter(payload__completed_at__gt=since).values_list("address", flat=True).distinct()
        )
    return found.intersection(addresses)


# -- accepted ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AcceptedDelivery:
    """The connection `holder` accepted a delivery, from byte `position` on."""

    transfer: UUID
    holder: Holder
    position: int

    @property
    def key(self) -> Key:
        return self.transfer, self.holder.client


def accept(batch: Sequence[AcceptedDelivery]) -> list[str | Refused]:
    """Move deliveries to the connections that accepted them, in one transaction.

    Returns for each the channel of an older connection of the same client that held it, else an empty string; or why it
    cannot have it: the delivery is over, or a newer connection of the client holds it.
    """
    now = timezone.now()
    with sql.atomic():
        rows = _locked_rows({one.transfer for one in batch})
        held = _positions(batch)
        answers: list[str | Refused] = []
        taken: dict[Key, ClientPosition] = {}
        for one in batch:
            answer = _answer(one, rows.get(one.transfer), held.get(one.key), now)
            if not isinstance(answer, Refused):
                held[one.key] = taken[one.key] = _held(one, now)
            answers.append(answer)
        _HELD.run([_values_of(position) for position in taken.values()])
        transfers = {transfer for transfer, _ in taken}
        _forget_oldest_clients(transfers)
        Transfer.objects.filter(pk__in=transfers).update(waiting_for="", progressed_at=now)
    for one, answer in zip(batch, answers, strict=True):
        if not isinstance(answer, Refused):
            payload = rows[one.transfer].payload_id
            timeline.note("accepted", payload=payload, transfer=one.transfer, position=one.position)
    return answers


def _locked_rows(transfers: Iterable[UUID]) -> dict[UUID, Transfer]:
    rows = Transfer.objects.select_related("payload").filter(pk__in=transfers).order_by("pk")
    return {row.pk: row for row in sql.lock(rows, "self")}


def _positions(batch: Sequence[AcceptedDelivery]) -> dict[Key, ClientPosition]:
    found = ClientPosition.objects.filter(
        transfer__in={one.transfer for one in batch}, client__in={one.holder.client for one in batch}
    )
    return {(position.transfer_id, position.client): position for position in found}


def _answer(
    one: AcceptedDelivery, row: Transfer | None, mine: ClientPosition | None, now: datetime.datetime
) -> str | Refused:
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


def _held(one: AcceptedDelivery, now: datetime.datetime) -> ClientPosition:
    return ClientPosition(
        transfer_id=one.transfer,
        client=one.holder.client,
        state=ClientState.OPEN,
        position=one.position,
        updated_at=now,
        session_order=one.holder.order,
        channel=one.holder.channel,
    )


def _values_of(position: ClientPosition) -> tuple[object, ...]:
    return (
        *(position.transfer_id, position.client, ClientState.OPEN.value, position.position),
        *(position.updated_at, position.session_order, position.channel),
    )


def _forget_oldest_clients(transfers: Iterable[UUID]) -> None:
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


# -- how far they are --------------------------------------------------------------------------------------------------


def note_positions(positions: Mapping[tuple[UUID, str], int]) -> None:
    """Write how far clients are that have not finished. `positions`: (transfer, client) to bytes. One transaction for all."""
    now, noted = timezone.now(), positions.items()
    state, live = ClientState.OPEN.value, TransferState.LIVE.value
    with sql.atomic():
        sql.lock_in_order(Transfer.objects.filter(pk__in={transfer for transfer, _ in positions}))
        _NOTE.run_each([(position, now, transfer, client, state) for (transfer, client), position in noted])
        _PROGRESS.run_each([(position, now, transfer, live, position) for (transfer, _), position in noted])


@dataclass(frozen=True, slots=True)
class DetachedDelivery:
    """The connection whose channel is `channel` holds a delivery to `client` no more, which is at byte `position`."""

    transfer: UUID
    client: str
    channel: str
    position: int
    close_code: int | None

    def note(self) -> None:
        """Note it; a newer holder is left alone. It waits for its client once no other client of the user holds it."""
        note_positions({(self.transfer, self.client): self.position})
        mine = ClientPosition.objects.filter(transfer=self.transfer, client=self.client, channel=self.channel)
        if mine.update(channel=""):
            live = Transfer.objects.filter(pk=self.transfer, state=TransferState.LIVE)
            live.update(last_close_code=self.close_code)
            held = ClientPosition.objects.filter(transfer=OuterRef("pk")).exclude(channel="")
            live.filter(~Exists(held)).update(waiting_for="client")
            timeline.note("detached", transfer=self.transfer, code=self.close_code)


@dataclass(frozen=True, slots=True)
class Received:
    """A client has all `size` bytes of a delivery."""

    transfer: UUID
    client: str
    size: int


def finish(batch: Sequence[Received]) -> list[None]:
    """Note which clients have all of which deliveries, in one transaction. The first one of a user serves the user."""
    now = timezone.now()
    live, done = TransferState.LIVE.value, TransferState.DONE.value
    with sql.atomic():
        found = _locked({one.transfer for one in batch})
        known = [one for one in batch if one.transfer in found]  # not what is deleted by now
        served = {one.transfer: one for one in reversed(known) if found[one.transfer][1] == live}
        state = ClientState.DONE.value
        _POSITIONS.run([(one.transfer, one.client, state, one.size, now) for one in known])
        _SERVE.run_each([(done, now, now, one.size, "", one.transfer, live) for one in served.values()])
        if again := {one.transfer for one in known if one.transfer not in served}:
            _forget_oldest_clients(again)
        for transfer in served:
            _note_served(transfer, found[transfer][0])
    return [None] * len(batch)


def _locked(transfers: Collection[UUID]) -> dict[UUID, tuple[UUID, str]]:
    """Return payload and state of transfers, and lock the transfers until the transaction ends."""
    where = f"WHERE {{id}} IN ({places(len(transfers))}) ORDER BY {{id}}"
    text = f"SELECT {{id}}, {{payload}}, {{state}} FROM {{table}} {where}"
    found = Statement(Transfer, text, *["id"] * len(transfers)).fetch(*transfers, lock=True)
    uuid = Payload._meta.pk.to_python
    return {uuid(transfer): (uuid(payload), state) for transfer, payload, state in found}


def _note_served(transfer: UUID, payload: UUID) -> None:
    if outbox.wanted("payload_delivered"):
        row = Transfer.objects.select_related("payload").get(pk=transfer)
        outbox.add("payload_delivered", row.payload, row)
    timeline.note("delivered", payload=payload, transfer=transfer)


def decline(transfer: UUID, client: str) -> None:
    """Note that a client does not want it, or ended it for good; its user's other clients are still offered it."""
    with sql.atomic():
        # An accept that came just before reads the position before it writes it: it has to be through, or to see this.
        sql.lock_in_order(Transfer.objects.filter(pk=transfer))
        if not Transfer.objects.filter(pk=transfer).exists():
            return
        ClientPosition.objects.update_or_create(
            transfer_id=transfer,
            client=client,
            defaults={"state": ClientState.DECLINED, "updated_at": timezone.now(), "channel": ""},
        )
        _forget_oldest_clients([transfer])
    timeline.note("declined", transfer=transfer)


def note_damaged(transfer: UUID, payload: UUID) -> None:
    """Note that a client received other bytes than the payload's: its disk is damaged, or ours."""
    timeline.note("damaged", payload=payload, transfer=transfer)
