"""Inline payloads: few bytes, kept in their database row, taken in by the web process without a worker.

`insert` is the one way in which complete ones get their rows: small uploads that came whole with their offer, many in one
transaction (`store_whole`), and what server code delivers (`deliver`). `store` and `complete` change the row of an upload
that is open already, whose bytes come behind its offer.

What is not plainly new and allowed (a transfer that exists, a digest that differs, a quota at its edge), `store_whole`
leaves to `uploads`, which takes each by itself and knows every case. Runs in a thread.
"""

from __future__ import annotations

import datetime
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.contrib.auth import get_user_model
from django.db import IntegrityError
from django.utils import timezone

from delivery import conf, policy
from delivery.errors import Refused
from delivery.models import Address, Direction, Payload, PayloadState, Transfer, TransferState, new_id
from delivery.protocol.messages import UploadOffer
from delivery.transfers import admission, deliveries, outbox, outcomes, quotas, sql, timeline, uploads
from delivery.transfers.admission import Admission
from delivery.transfers.deliveries import Waiting
from delivery.transfers.holders import Holder
from delivery.transfers.sql import Insert, Statement, places
from delivery.transfers.uploads import FinishedUpload

UPLOAD, DELIVERY = Direction.UPLOAD.value, Direction.DELIVERY.value
COMPLETE, DONE, LIVE = PayloadState.COMPLETE.value, TransferState.DONE.value, TransferState.LIVE.value

_PAYLOADS = Insert(
    Payload,
    *("id", "owner", "name", "content_type", "meta", "size", "reserved", "overhead", "sha256", "expected_sha256"),
    *("state", "inline", "keep", "created_at", "completed_at", "expires_at", "lifetime"),
)
_ADDRESSES = Insert(Address, "payload", "address")
_TRANSFERS = Insert(
    Transfer,
    *("id", "direction", "payload", "user", "key", "state", "lease", "position", "session", "session_order"),
    *("created_at", "progressed_at", "ended_at", "expires_at"),
)


# -- complete ones -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InlinePayload:
    """A complete inline payload, as its rows are to have it.

    `owner`, `users`: primary keys, of who sent it and who receives it. `expected`: the digest that its sender gave.
    `reserved`, `overhead`: bytes that its owner's quota is charged with. `upload`: the transfer that it came by.
    """

    id: UUID
    owner: Any
    name: str
    content_type: str
    meta: Mapping[str, str]
    data: bytes
    sha256: str
    expected: str
    addresses: tuple[str, ...]
    users: tuple[Any, ...]
    reserved: int
    overhead: int | None
    keep: bool
    now: datetime.datetime
    expires: datetime.datetime | None
    lifetime: datetime.timedelta | None = None
    upload: UUID | None = None


@dataclass(frozen=True, slots=True)
class _Delivery:
    """A delivery that was made, by its transfer."""

    transfer: UUID
    payload: InlinePayload
    user: Any


def insert(payloads: Sequence[InlinePayload], upload_rows: Iterable[tuple[Any, ...]] = ()) -> list[_Delivery]:
    """Write the rows of complete payloads and of their deliveries, inside the caller's transaction.

    `upload_rows`: those of `_TRANSFERS` for the uploads that they came by. Recipients are not told.
    """
    made = [_Delivery(new_id(), one, user) for one in payloads for user in one.users]
    _PAYLOADS.run([_payload_row(one) for one in payloads])
    _ADDRESSES.run([(one.id, address) for one in payloads for address in one.addresses])
    _TRANSFERS.run([*upload_rows, *(_delivery_row(one) for one in made)])
    for one in payloads:
        if outbox.wanted("payload_stored"):
            outbox.add("payload_stored", Payload.objects.get(pk=one.id))
        timeline.note("complete", payload=one.id, transfer=one.upload, size=len(one.data))
    return made


def _payload_row(one: InlinePayload) -> tuple[Any, ...]:
    return (
        *(one.id, one.owner, one.name, one.content_type, dict(one.meta), len(one.data), one.reserved, one.overhead),
        *(one.sha256, one.expected, COMPLETE, one.data, one.keep, one.now, one.now, one.expires, one.lifetime),
    )


def _delivery_row(one: _Delivery) -> tuple[Any, ...]:
    now, expires = one.payload.now, one.payload.expires
    return (
        *(one.transfer, DELIVERY, one.payload.id, one.user, one.transfer, LIVE, 0, 0),
        *("", 0, now, now, None, expires),
    )


def deliver(payload: Payload, sha256: str, addresses: Sequence[str], users: Sequence[Any]) -> None:
    """Insert a payload of server code, inside the caller's transaction; recipients hear of it once that has committed.

    `payload`: not saved, with its bytes in `inline`; it is then as its row. `users`: the primary keys of its recipients,
    asked for before the transaction; who is deleted by now gets none.
    """
    now = timezone.now()
    payload.state, payload.sha256 = PayloadState.COMPLETE, sha256
    payload.created_at = payload.completed_at = now
    payload.expires_at = outcomes.expiry(payload, now)
    insert([_of_server_code(payload, addresses, sql.keep_rows(get_user_model(), users))])
    payload._state.adding, payload._state.db = False, sql.alias()
    outcomes.announce_on_commit(payload, outcomes.addresses_to_tell(addresses, users))


def _of_server_code(payload: Payload, addresses: Sequence[str], users: Sequence[Any]) -> InlinePayload:
    return InlinePayload(
        id=payload.id,
        owner=payload.owner_id,
        name=payload.name,
        content_type=payload.content_type,
        meta=payload.meta,
        data=bytes(payload.inline or b""),
        sha256=payload.sha256,
        expected="",
        addresses=tuple(addresses),
        users=tuple(users),
        reserved=payload.reserved,
        overhead=payload.overhead,
        keep=payload.keep,
        now=payload.created_at,
        expires=payload.expires_at,
        lifetime=payload.lifetime,
    )


# -- whole with their offers -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SmallOffer:
    """An offer with all of its bytes. `expected`: the digests that the sender gave. `admitted`: with its recipients."""

    user: Any
    holder: Holder
    offer: UploadOffer
    data: bytes
    expected: frozenset[str]
    admitted: Admission


@dataclass(frozen=True, slots=True)
class _SmallUpload:
    """What becomes of one offer: its payload, and its transfer."""

    offered: SmallOffer
    key: UUID
    transfer: UUID
    payload: InlinePayload


@dataclass(frozen=True, slots=True)
class Arrival:
    """Something that has come for whoever joined `address`; `waiting`: the delivery itself, None where it is to be found."""

    address: str
    waiting: Waiting | None = None


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """What became of a batch: of each offer its finished payload, or None where it is to go the long way.

    `arrivals`: what the recipients are to be told now; nobody has told them.
    """

    outcomes: list[FinishedUpload | None]
    arrivals: list[Arrival]


def store_whole(batch: Sequence[SmallOffer]) -> StoredBatch:
    """Store and complete all offers of a batch in one transaction. The policy was asked before; no site code runs here."""
    try:
        with sql.atomic():
            rows = _uploads_of(batch)
            arrivals = _insert_uploads([row for row in rows if row is not None])
    except IntegrityError:  # an offer of the same transfer came by another process in this moment
        return StoredBatch([None] * len(batch), [])
    return StoredBatch([None if row is None else _finished(row.payload) for row in rows], arrivals)


def _finished(payload: InlinePayload) -> FinishedUpload:
    return FinishedUpload(payload.id, len(payload.data), payload.sha256, fresh=True)


def _uploads_of(batch: Sequence[SmallOffer]) -> list[_SmallUpload | None]:
    keys = [UUID(one.offer.transfer) for one in batch]
    known = _known({one.user.pk for one in batch}, keys)
    rows: list[_SmallUpload | None] = []
    for one, key in zip(batch, keys, strict=True):
        fresh = (one.user.pk, key) not in known
        known.add((one.user.pk, key))
        rows.append(_upload_of(one, key) if fresh else None)
    return _within_quota(batch, rows)


def _known(users: set[Any], keys: list[UUID]) -> set[tuple[Any, UUID]]:
    """Return those of the users' uploads that exist."""
    statement = Statement(
        Transfer,
        f"SELECT {{user}}, {{key}} FROM {{table}} WHERE {{direction}} = %s"
        f" AND {{user}} IN ({places(len(users))}) AND {{key}} IN ({places(len(keys))})",
        *("direction", *["user"] * len(users), *["key"] * len(keys)),
    )
    user, key = get_user_model()._meta.pk.to_python, Transfer._meta.get_field("key").to_python
    return {(user(row[0]), key(row[1])) for row in statement.fetch(UPLOAD, *users, *keys)}


def _upload_of(one: SmallOffer, key: UUID) -> _SmallUpload | None:
    digest = hashlib.sha256(one.data).hexdigest()
    if one.expected - {digest} or len(one.data) > one.admitted.max_size:
        return None
    name, addresses = admission.clean_name(one.offer.name), one.admitted.addresses
    now = timezone.now()  # each its own: they are offered in the order in which they came
    transfer = new_id()
    payload = InlinePayload(
        id=new_id(),
        owner=one.user.pk,
        name=name,
        content_type=admission.clean_type(one.offer.content_type),
        meta=one.offer.meta,
        data=one.data,
        sha256=digest,
        expected=digest if one.expected else "",
        addresses=addresses,
        users=one.admitted.recipients or (),
        reserved=len(one.data),
        overhead=admission.overhead(name, one.offer.meta),
        keep=not addresses,
        now=now,
        expires=now + datetime.timedelta(seconds=conf.current().payload_expiry) if addresses else None,
        upload=transfer,
    )
    return _SmallUpload(one, key, transfer, payload)


def _within_quota(batch: Sequence[SmallOffer], rows: list[_SmallUpload | None]) -> list[_SmallUpload | None]:
    """Charge each user with all that they send in this batch; who is at the edge goes the long way."""
    wanted: dict[Any, int] = defaultdict(int)
    newest = {}  # offer of each user: the policy's newest answer
    for one, row in zip(batch, rows, strict=True):
        if row is not None:
            wanted[one.user.pk] += row.payload.reserved + (row.payload.overhead or 0)
            newest[one.user.pk] = one
    over = set()
    for pk, size in sorted(wanted.items()):  # the order of locks
        try:
            quotas.reserve(newest[pk].user, newest[pk].admitted.quota, size, live=False)
        except Refused:
            over.add(pk)
    return [None if one.user.pk in over else row for one, row in zip(batch, rows, strict=True)]


def _insert_uploads(rows: list[_SmallUpload]) -> list[Arrival]:
    in_order = sorted(rows, key=lambda row: row.key)  # a client may repeat them elsewhere, in another order
    made = insert([row.payload for row in rows], map(_upload_row, in_order))
    groups = {one for row in rows for one in row.payload.addresses if one.startswith(policy.GROUP)}
    arrivals = [Arrival(f"{policy.USER}{one.user}", _waiting(one)) for one in made]
    return arrivals + [Arrival(address) for address in groups]  # who has subscribed without being a member


def _upload_row(row: _SmallUpload) -> tuple[Any, ...]:
    payload, holder = row.payload, row.offered.holder
    return (
        *(row.transfer, UPLOAD, payload.id, payload.owner, row.key, DONE, 1, len(payload.data)),
        *(holder.session, holder.order, payload.now, payload.now, payload.now, None),
    )


def _waiting(made: _Delivery) -> Waiting:
    payload = made.payload
    return Waiting(
        transfer=made.transfer,
        payload=payload.id,
        name=payload.name,
        size=len(payload.data),
        sha256=payload.sha256,
        content_type=payload.content_type,
        meta=payload.meta,
        sender=f"{policy.USER}{payload.owner}",
        expires=payload.expires,
        inline=payload.data,
        first=True,
        groups=deliveries.through(payload.addresses, f"{policy.USER}{made.user}"),
    )


# -- whose bytes come behind their offers ------------------------------------------------------------------------------


def store(transfer: UUID, lease: int, offset: int, data: bytes) -> int:
    """Store bytes from `offset` on in the payload's row; return the new position in bytes. Raises `StaleLease`."""
    with sql.atomic():
        row = uploads.locked_under(transfer, lease)
        Payload.objects.filter(pk=row.payload_id).update(inline=_joined(row.payload, offset, data))
        row.position = offset + len(data)
        uploads.progressed(row)
        row.save(update_fields=["position", "progressed_at", "expires_at", "waiting_for"])
    return row.position


def complete(
    transfer: UUID, lease: int, offset: int, data: bytes, expected: set[str], users: Sequence[Any]
) -> FinishedUpload | None:
    """Store the last bytes and complete the payload, in one transaction.

    `users`: the primary keys of its recipients. `expected`: the digests that the sender gave. Returns None where what is
    stored has another one: the payload has failed. Raises `StaleLease`.
    """
    with sql.atomic():
        payload = uploads.locked_under(transfer, lease).payload
        payload.inline = _joined(payload, offset, data)
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


def _joined(payload: Payload, offset: int, data: bytes) -> bytes:
    """Return what a payload holds with `data` from byte `offset` on."""
    return bytes(payload.inline or b"")[:offset] + data
