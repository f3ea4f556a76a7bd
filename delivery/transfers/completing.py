"""Completing: a payload whose digest agrees becomes visible, its recipients get their deliveries, the site its notice."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from django.contrib.auth import get_user_model
from django.db import transaction
from django.utils import timezone

from delivery import conf, notify, policy
from delivery.models import Address, Direction, Payload, PayloadState, Transfer, TransferState
from delivery.transfers import ending, events, locks, notices, quotas
from delivery.transfers.rows import Statement

KNOWN_SECONDS = 1.0  # as long as a login is believed
MOST_KNOWN = 10_000
_COMPLETE = Statement(
    Payload,
    "UPDATE {table} SET {state} = %s, {sha256} = %s, {completed_at} = %s, {expires_at} = %s, {sealer} = %s,"
    " {sealing_at} = NULL WHERE {id} = %s",
    *("state", "sha256", "completed_at", "expires_at", "sealer", "id"),
)
_END_UPLOAD = Statement(
    Transfer,
    "UPDATE {table} SET {state} = %s, {ended_at} = %s, {position} = %s, {client} = %s, {channel} = %s,"
    " {waiting_for} = %s WHERE {payload} = %s AND {direction} = %s AND {state} = %s",
    *("state", "ended_at", "position", "client", "channel", "waiting_for", "payload", "direction", "state"),
)
_ADDRESSES = Statement(Address, "SELECT {address} FROM {table} WHERE {payload} = %s", "payload")


def complete(payload_id: UUID, sha256: str, *, sealer: str | None = None) -> bool:
    """Complete a payload whose stored bytes have the digest `sha256`, or fail it where another was promised.

    `sealer`: complete only if that task still holds the claim. Returns whether the payload is complete now.
    """
    with transaction.atomic():
        unfinished = (PayloadState.STORING, PayloadState.SEALING)
        rows = locks.lock(Payload.objects.filter(pk=payload_id, state__in=unfinished))
        payload = (rows if sealer is None else rows.filter(sealer=sealer)).first()
        if payload is None:
            return False
        if payload.expected_sha256 and payload.expected_sha256 != sha256:
            ending.fail(payload_id, "digest")
            return False
        complete_locked(payload, sha256)
    return True


def complete_locked(payload: Payload, sha256: str) -> None:
    """Complete a payload inside the caller's transaction; recipients and waiters hear of it once it has committed."""
    now = timezone.now()
    payload.state, payload.sha256, payload.completed_at = PayloadState.COMPLETE, sha256, now
    payload.sealing_at, payload.sealer = None, ""
    payload.expires_at = None if payload.keep else now + (payload.lifetime or _default_lifetime())
    _COMPLETE.run(payload.state.value, sha256, now, payload.expires_at, "", payload.id)
    done = (TransferState.DONE.value, now, payload.size or 0, "", "", "")
    _END_UPLOAD.run(*done, payload.id, Direction.UPLOAD.value, TransferState.LIVE.value)
    quotas.completed(payload)
    addresses = [address for (address,) in _ADDRESSES.fetch(payload.id)]
    told = {*addresses, *create_deliveries(payload, addresses)}
    notices.add("payload_stored", payload)
    events.note("complete", payload=payload.id, size=payload.size)
    transaction.on_commit(lambda: _announce(payload, told))


def _default_lifetime() -> datetime.timedelta:
    return datetime.timedelta(seconds=conf.current().payload_expiry)


def _announce(payload: Payload, addresses: set[str]) -> None:
    notify.wake(payload.id, "sealed", size=payload.size, sha256=payload.sha256)
    for address in addresses:
        notify.tell_group(address, "waiting", address=address)


def tell(payload_id: UUID) -> None:
    """Wake who waits for the end of sealing, if it is over already."""
    row = Payload.objects.filter(pk=payload_id).values_list("state", "size", "sha256", "failure").first()
    if row and row[0] == PayloadState.COMPLETE:
        notify.wake(payload_id, "sealed", size=row[1], sha256=row[2])
    elif row and row[0] in (PayloadState.FAILED, PayloadState.CANCELLED, PayloadState.EXPIRED):
        notify.wake(payload_id, "ended", code=row[3] or "cancelled")


def outcome(payload_id: UUID) -> tuple[str, int, str, str]:
    """Return (state, size, digest, failure) of a payload as the database has it now; empty strings where it is gone."""
    row = Payload.objects.filter(pk=payload_id).values_list("state", "size", "sha256", "failure").first()
    return (row[0], row[1] or 0, row[2], row[3]) if row else ("", 0, "", "")


def create_deliveries(payload: Payload, addresses: list[str]) -> list[str]:
    """Make one delivery for each user whom the addresses mean; a user who has one keeps it.

    Returns the users' own addresses: a group's members have not all subscribed to it.
    """
    users = Recipients().of(addresses)
    create_for_users(payload, users)
    return [f"{policy.USER}{user}" for user in users]


class Known:
    """Users that addresses mean, remembered for a second; who is unknown is asked for again. Any thread."""

    def __init__(self) -> None:
        self._found: dict[tuple[type, str], tuple[float, Any]] = {}

    def find(self, rules: policy.DefaultPolicy, name: str) -> Any | None:
        """Return what `rules.find_user` returns, or did within the last second."""
        key, now = (type(rules), name), time.monotonic()
        since, user = self._found.get(key, (-KNOWN_SECONDS, None))
        if now - since < KNOWN_SECONDS:
            return user
        user = rules.find_user(name)
        if user is not None:
            if len(self._found) >= MOST_KNOWN:
                self._found = {}
            self._found[key] = (now, user)
        return user


class Recipients:
    """Whom addresses mean, as the policy says now; each user and each address is asked for once.

    `known`: where users are looked up first, for messages that come by the hundred in a second.
    """

    def __init__(self, known: Known | None = None) -> None:
        self._rules = policy.current()
        self._remembered = known or Known()
        self._known: dict[str, list[Any]] = {}
        self._users_by_name: dict[str, Any | None] = {}

    def find_user(self, name: str) -> Any | None:
        """Return the user whom `user:<name>` means, None for nobody."""
        if name not in self._users_by_name:
            self._users_by_name[name] = self._remembered.find(self._rules, name)
        return self._users_by_name[name]

    def of(self, addresses: list[str]) -> list[Any]:
        """Return the primary keys of the users, each once."""
        return list(dict.fromkeys(user for address in addresses for user in self._users(address)))

    def _users(self, address: str) -> list[Any]:
        if address not in self._known:
            self._known[address] = [user.pk for user in self._ask(address)]
        return self._known[address]

    def _ask(self, address: str) -> Iterable[Any]:
        if address.startswith(policy.GROUP):
            return self._rules.group_members(address.removeprefix(policy.GROUP))
        user = self.find_user(address.removeprefix(policy.USER))
        return () if user is None else (user,)


def delivery_of(payload: Payload, user: Any) -> Transfer:
    """Return a new row, not saved: the delivery of a payload to a user (a primary key)."""
    row = Transfer(
        direction=Direction.DELIVERY,
        payload=payload,
        user_id=user,
        progressed_at=timezone.now(),
        expires_at=payload.expires_at,
    )
    row.key = row.id
    return row


def create_for_users(payload: Payload, users: list[Any]) -> None:
    """Make the deliveries of a payload to users; those who have one keep it, and who is deleted by now gets none."""
    users = locks.keep(get_user_model(), users)
    Transfer.objects.bulk_create([delivery_of(payload, user) for user in users], ignore_conflicts=True)
