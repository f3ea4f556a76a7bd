"""Who may do what: a class that a site replaces by naming its own in `DELIVERY["POLICY"]`.

The default lets a logged-in user upload to the site and receive what server code addresses to it. Sending to users and
groups is refused until a site's policy allows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db.models import Model, QuerySet
from django.utils.module_loading import import_string

from delivery import conf

USER = "user:"
GROUP = "group:"


@dataclass(frozen=True, slots=True)
class Group:
    """A group address; the policy lists its members."""

    name: str

    @property
    def address(self) -> str:
        return GROUP + self.name


def group(name: str) -> Group:
    """Return the address of the group `name`, for `deliver(..., to=group("ops"))`."""
    return Group(name)


def address_of(user: Any) -> str:
    """Return `user:<primary key>`."""
    return f"{USER}{user.pk}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """The limits of one user. Each web process counts `offers_per_minute` and `connections` separately.

    `stored` (bytes): of payloads that they sent and that still exist, unfinished ones included. `live`: uploads at
    once. `in_flight` (bytes): the windows of all those uploads together.
    """

    stored: int = 100 * conf.GIB
    live: int = 1_000
    in_flight: int = 16 * conf.GIB
    offers_per_minute: int = 60_000
    connections: int = 2_000


class DefaultPolicy:
    """The site's decisions. Every method runs in a thread and may query the database; none may block for long.

    If a method raises, or does not answer an offer within 5 s, the offer is refused with `busy`, and the log says so.
    """

    def may_connect(self, user: Any) -> bool:
        """Return whether `user`, who is authenticated, may connect, and stay connected."""
        return bool(user.is_active)

    def may_send(self, user: Any, addresses: Sequence[str]) -> bool:
        """Return whether `user` may upload a payload for `addresses`; none means: for the site itself."""
        return not addresses

    def may_join(self, user: Any, name: str) -> bool:
        """Return whether `user` may subscribe to the group `name` when it connects."""
        return False

    def group_members(self, name: str) -> Iterable[Any]:
        """Return the users of the group `name`; asked at each payload that is addressed to it."""
        return ()

    def max_payload(self, user: Any) -> int:
        """Return the largest payload in bytes that `user` may upload; MAX_PAYLOAD is the most in any case."""
        return conf.current().max_payload

    def quota(self, user: Any) -> Quota:
        """Return what `user` may use; asked at each connection and offer."""
        return Quota()

    def find_user(self, name: str) -> Any | None:
        """Return the active user whom `user:<name>` of an offer means; None for nobody.

        `name` is a primary key, or a user name where it cannot be one. Asked at the first offer: the address that is kept
        holds the primary key. Small messages believe an answer for a second.
        """
        return user_named(name, get_user_model()._default_manager.filter(is_active=True))


def user_named(name: str, users: QuerySet[Any]) -> Any | None:
    """Return the user in `users` with the primary key `name`, None if there is none.

    A name counts as a user name only if it cannot be a primary key. So a user named "2" never gets a payload for the user
    with the key 2, who may be deleted.
    """
    key = key_of(name, users.model)
    if key is None:
        return users.filter(**{users.model.USERNAME_FIELD: name}).first()
    try:
        return users.filter(pk=key).first()
    except (ValueError, OverflowError):  # larger than the database holds
        return None


def key_of(name: str, model: type[Model]) -> Any | None:
    """Return the primary key of `model` that `name` writes, None where it writes none.

    A number has one spelling, its decimal digits: "02", "+2" and "2_0" are no keys. A UUID may be written in any way.
    """
    field: Any = model._meta.pk
    while field.remote_field is not None:  # a user that extends another model
        field = field.target_field
    try:
        key = field.to_python(name)
    except (ValueError, TypeError, OverflowError, ValidationError):
        return None
    return None if isinstance(key, int) and str(key) != name else key


def current() -> DefaultPolicy:
    """Return a new object of the site's policy, which keeps no state."""
    policy: DefaultPolicy = import_string(conf.current().policy)()
    return policy
