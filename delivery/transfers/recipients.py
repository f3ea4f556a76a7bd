"""Resolves addresses: users by their primary keys, groups by the members that the site's policy lists.

Addresses are made canonical when they arrive. A stored address holds a primary key and is resolved only by that, without the
policy. Inactive users get nothing. The policy is the site's own code: call it outside of any transaction. Runs in a thread
and queries the database.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol
from uuid import UUID

from django.contrib.auth import get_user_model
from django.db.models import QuerySet

from delivery import policy
from delivery.errors import PolicyUnavailable
from delivery.models import Address

logger = logging.getLogger(__name__)

KNOWN_SECONDS = 1.0  # as long as a login is believed
MOST_KNOWN = 10_000
MOST_ADDRESSES = 1_000  # of one offer: each may be a query


class Finder(Protocol):
    """A policy, or what remembers its answers."""

    def find_user(self, name: str) -> Any | None: ...


def canonical_addresses(rules: Finder, to: Sequence[str]) -> list[str] | None:
    """Return addresses as the rows keep them (`user:<primary key>`, `group:<name>`), each once.

    None where any is malformed or names nobody, or there are too many: an unknown address and a forbidden one must
    look alike.
    """
    if len(to) > MOST_ADDRESSES:
        return None
    found: dict[str, None] = {}
    for address in to:
        one = _canonical(rules, address)
        if one is None:
            return None
        found[one] = None
    return list(found)


def _canonical(rules: Finder, address: str) -> str | None:
    if "\0" in address:  # control messages have none, URLs may; PostgreSQL raises where it meets one
        return None
    if address.startswith(policy.USER):
        user = rules.find_user(address.removeprefix(policy.USER))
        return None if user is None else policy.address_of(user)
    if address.startswith(policy.GROUP) and 0 < len(address) - len(policy.GROUP) <= 200:
        return address
    return None


class Known:
    """Users that names and keys mean, remembered for a second; who is unknown is asked for again. Any thread."""

    def __init__(self) -> None:
        self._found: dict[tuple[type, str], tuple[float, Any]] = {}

    def get(self, kind: type, name: str) -> Any | None:
        """Return who was `put` within the last second."""
        since, user = self._found.get((kind, name), (-KNOWN_SECONDS, None))
        return user if time.monotonic() - since < KNOWN_SECONDS else None

    def put(self, kind: type, name: str, user: Any) -> None:
        if len(self._found) >= MOST_KNOWN:
            self._found = {}
        self._found[kind, name] = (time.monotonic(), user)


class Recipients:
    """Whom addresses mean now; each user and each group is asked for once.

    `known`: where users are looked up first, for messages that come by the hundred in a second.
    """

    def __init__(self, known: Known | None = None) -> None:
        self._rules = policy.current()
        self._remembered = known or Known()
        self._members: dict[str, list[Any]] = {}

    def find_user(self, name: str) -> Any | None:
        """Return the user whom `user:<name>` of an offer means, None for nobody. Raises what the policy raises."""
        kind = type(self._rules)
        found = self._remembered.get(kind, name)
        if found is None and (found := self._rules.find_user(name)) is not None:
            self._remembered.put(kind, name, found)
        return found

    def of(self, addresses: Sequence[str]) -> list[Any]:
        """Return the primary keys of the users whom canonical addresses mean, each once.

        Raises `PolicyUnavailable` where the policy fails over a group.
        """
        users = self._by_key([one.removeprefix(policy.USER) for one in addresses if one.startswith(policy.USER)])
        found: dict[Any, None] = {}
        for address in addresses:
            if address.startswith(policy.GROUP):
                found |= dict.fromkeys(self._members_of(address.removeprefix(policy.GROUP)))
            elif (user := users.get(address.removeprefix(policy.USER))) is not None:
                found[user.pk] = None
        return list(found)

    def _by_key(self, names: list[str]) -> dict[str, Any]:
        """Return the active users who have these primary keys."""
        known = {name: user for name in names if (user := self._remembered.get(Recipients, name)) is not None}
        model = get_user_model()
        keys = {name: policy.key_of(name, model) for name in names if name not in known}
        wanted = [key for key in keys.values() if key is not None]
        there = model._default_manager.in_bulk(wanted) if wanted else {}
        for name, key in keys.items():
            user = there.get(key)
            if user is not None and user.is_active:
                known[name] = user
                self._remembered.put(Recipients, name, user)
        return known

    def _members_of(self, name: str) -> list[Any]:
        if name not in self._members:
            try:
                members = list(self._rules.group_members(name))
            except Exception as error:  # the site's own code
                logger.exception("the site's policy fails over the members of a group")
                raise PolicyUnavailable("the site's policy fails over the members of a group") from error
            self._members[name] = [user.pk for user in members if user.is_active]
        return self._members[name]


def of_payload(payload: UUID) -> list[Any]:
    """Return the primary keys of those who are to receive a payload now. Raises `PolicyUnavailable`.

    Without a group among its addresses, the policy is not asked.
    """
    addresses = list(Address.objects.filter(payload=payload).order_by("pk").values_list("address", flat=True))
    return Recipients().of(addresses) if addresses else []


def joinable(user: Any, names: Sequence[str]) -> list[str]:
    """Return those of the groups that the policy lets `user` subscribe to; over which it fails, that one it does not."""
    rules = policy.current()
    return [name for name in names if _holds(lambda name=name: rules.may_join(user, name), user.pk)]  # type: ignore[misc]


def memberships(user: Any, names: Collection[str]) -> frozenset[str]:
    """Return those of the groups of which a user (a primary key) is a member now: lets in or lists as one.

    Where the policy fails over a group, they are not. Nobody is who is not active.
    """
    found = get_user_model()._default_manager.filter(pk=user).first()
    if found is None or not found.is_active:
        return frozenset()
    rules = policy.current()
    return frozenset(name for name in names if _holds(lambda name=name: _is_member(rules, found, name), user))  # type: ignore[misc]


def _is_member(rules: policy.DefaultPolicy, user: Any, name: str) -> bool:
    if rules.may_join(user, name):
        return True
    members = rules.group_members(name)
    if isinstance(members, QuerySet) and not members.query.is_sliced:
        return bool(members.filter(pk=user.pk).exists())  # not all of them, for one
    return any(member.pk == user.pk for member in members)


def _holds(question: Callable[[], bool], user: Any) -> bool:
    try:
        return question()
    except Exception:  # the site's own code
        logger.exception("the site's policy fails over a group of user %s", user)
        return False
