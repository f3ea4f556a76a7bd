"""Small uploads that come whole with their offer: many of them in one transaction, each with a handful of rows.

What is not plainly new and allowed (a transfer that exists, a digest that differs, a quota at its edge) is left to
`uploads`, which takes each by itself and knows every case. Runs in a thread.
"""

from __future__ import annotations

import datetime
import hashlib
from collections import defaultdict
from collections.abc import Sequence
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
from delivery.transfers import admission, deliveries, outbox, quotas, sql, timeline
from delivery.transfers.admission import Admission
from delivery.transfers.deliveries import Waiting
from delivery.transfers.holders import Holder
from delivery.transfers.sql import Insert, Statement, places
from delivery.transfers.uploads import FinishedUpload

UPLOAD, DELIVERY = Direction.UPLOAD.value, Direction.DELIVERY.value
COMPLETE, DONE, LIVE = PayloadState.COMPLETE.value, TransferState.DONE.value, TransferState.LIVE.value

_PAYLOADS = Insert(
    Payload,
    *(
        "id",
        "owner",
        "name",
        "content_type",
        "meta",
        "size",
        "reserved",
        "overhead",
        "sha256",
        "expected_sha256",
        "state",
    ),
    *("inline", "keep", "created_at", "completed_at", "expires_at"),
)
_ADDRESSES = Insert(Address, "payload", "address")
_TRANSFERS = Insert(
    Transfer,
    *("id", "direction", "payload", "user", "key", "state", "lease", "position", "session", "session_order"),
    *("created_at", "progressed_at", "ended_at", "expires_at"),
)


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
class _Row:
    """What becomes of one offer, and of its payload."""

    offered: SmallOffer
    key: UUID
    id: UUID  # the payload's
    transfer: UUID
    name: str
    content_type: str
    sha256: str
    addresses: tuple[str, ...]
    overhead: int
    now: datetime.datetime
    expires: datetime.datetime | None


@dataclass(frozen=True, slots=True)
class Arrival:
    """Something that has come for whoever joined `address`; `waiting`: the delivery itself, None where it is to be found."""

    address: str
    waiting: Waiting | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a batch: of each offer its finished payload, or None where it is to go the long way.

    `arrivals`: what the recipients are to be told now; nobody has told them.
    """

    outcomes: list[FinishedUpload | None]
    arrivals: list[Arrival]


def take(batch: Sequence[SmallOffer]) -> Taken:
    """Store and complete all offers of a batch in one transaction. The policy was asked before; no site code runs here."""
    try:
        with sql.atomic():
            rows = _rows(batch)
            arrivals = _insert([row for row in rows if row is not None])
    except IntegrityError:  # an offer of the same transfer came by another process in this moment
        return Taken([None] * len(batch), [])
    return Taken([None if row is None else _finished(row) for row in rows], arrivals)


def _finished(row: _Row) -> FinishedUpload:
    return FinishedUpload(row.id, len(row.offered.data), row.sha256, fresh=True)


def _rows(batch: Sequence[SmallOffer]) -> list[_Row | None]:
    keys = [UUID(one.offer.transfer) for one in batch]
    known = _known({one.user.pk for one in batch}, keys)
    rows: list[_Row | None] = []
    for one, key in zip(batch, keys, strict=True):
        fresh = (one.user.pk, key) not in known
        known.add((one.user.pk, key))
        rows.append(_row(one, key) if fresh else None)
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


def _row(one: SmallOffer, key: UUID) -> _Row | None:
    digest = hashlib.sha256(one.data).hexdigest()
    if one.expected - {digest} or len(one.data) > one.admitted.max_size:
        return None
    name, addresses = admission.clean_name(one.offer.name), one.admitted.addresses
    now = timezone.now()  # each its own: they are offered in the order in which they came
    return _Row(
        offered=one,
        key=key,
        id=new_id(),
        transfer=new_id(),
        name=name,
        overhead=admission.overhead(name, one.offer.meta),
        content_type=admission.clean_type(one.offer.content_type),
        sha256=digest,
        addresses=addresses,
        now=now,
        expires=now + datetime.timedelta(seconds=conf.current().payload_expiry) if addresses else None,
    )


def _within_quota(batch: Sequence[SmallOffer], rows: list[_Row | None]) -> list[_Row | None]:
    """Charge each user with all that they send in this batch; who is at the edge goes the long way."""
    wanted: dict[Any, int] = defaultdict(int)
    newest = {}  # offer of each user: the policy's newest answer
    for one, row in zip(batch, rows, strict=True):
        if row is not None:
            wanted[one.user.pk] += len(one.data) + row.overhead
            newest[one.user.pk] = one
    over = set()
    for pk, size in sorted(wanted.items()):  # the order of `locks`
        try:
            quotas.reserve(newest[pk].user, newest[pk].admitted.quota, size, live=False)
        except Refused:
            over.add(pk)
    return [None if one.user.pk in over else row for one, row in zip(batch, rows, strict=True)]


def _insert(rows: list[_Row]) -> list[Arrival]:
    made = [(row, user, new_id()) for row in rows for user in row.offered.admitted.recipients or ()]
    _PAYLOADS.run([_payload(row) for row in rows])
    _ADDRESSES.run([(row.id, address) for row in rows for address in row.addresses])
    uploads = sorted(rows, key=lambda row: row.key)  # a client may repeat them elsewhere, in another order
    _TRANSFERS.run([*(_upload(row) for row in uploads), *(_delivery(*one) for one in made)])
    for row in rows:
        if outbox.wanted("payload_stored"):
            outbox.add("payload_stored", Payload.objects.get(pk=row.id))
        timeline.note("complete", payload=row.id, transfer=row.transfer, size=len(row.offered.data))
    groups = {one for row in rows for one in row.addresses if one.startswith(policy.GROUP)}
    arrivals = [Arrival(f"{policy.USER}{user}", _waiting(row, user, transfer)) for row, user, transfer in made]
    return arrivals + [Arrival(address) for address in groups]  # who has subscribed without being a member


def _payload(row: _Row) -> tuple[Any, ...]:
    one, size = row.offered, len(row.offered.data)
    return (
        *(row.id, one.user.pk, row.name, row.content_type, dict(one.offer.meta), size, size, row.overhead),
        *(row.sha256, row.sha256 if one.expected else "", COMPLETE),
        *(one.data, not row.addresses, row.now, row.now, row.expires),
    )


def _upload(row: _Row) -> tuple[Any, ...]:
    one = row.offered
    return (
        *(row.transfer, UPLOAD, row.id, one.user.pk, row.key, DONE, 1, len(one.data)),
        *(one.holder.session, one.holder.order, row.now, row.now, row.now, None),
    )


def _delivery(row: _Row, user: Any, transfer: UUID) -> tuple[Any, ...]:
    return (
        *(transfer, DELIVERY, row.id, user, transfer, LIVE, 0, 0),
        *("", 0, row.now, row.now, None, row.expires),
    )


def _waiting(row: _Row, user: Any, transfer: UUID) -> Waiting:
    one = row.offered
    return Waiting(
        transfer=transfer,
        payload=row.id,
        name=row.name,
        size=len(one.data),
        sha256=row.sha256,
        content_type=row.content_type,
        meta=one.offer.meta,
        sender=policy.address_of(one.user),
        expires=row.expires,
        inline=one.data,
        first=True,
        groups=deliveries.through(row.addresses, f"{policy.USER}{user}"),
    )
