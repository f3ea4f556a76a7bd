"""Tokens: a login for clients that are no browsers. Signed, and void after a change of password."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib.auth import get_user_model
from django.core import signing
from django.core.exceptions import ValidationError
from django.utils.crypto import constant_time_compare, salted_hmac

SALT = "delivery.token"


def _stamp(user: Any) -> str:
    """Return what changes with the password, without giving anything of it away."""
    return salted_hmac(SALT, f"{user.pk}:{user.password}", algorithm="sha256").hexdigest()[:20]


def make_token(user: Any, *, expires: float | None = None) -> str:
    """Return a token that logs in as `user`.

    `expires`: seconds from now after which it is refused; None is never. A change of password voids it at once.
    """
    until = None if expires is None else int(time.time() + expires)
    return signing.dumps([str(user.pk), _stamp(user), until], salt=SALT, compress=False)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a genuine token says: whose it is, the stamp of their password then, and when it lapses (Unix seconds)."""

    user: str
    stamp: str
    until: int | None

    def holds_for(self, user: Any) -> bool:
        """Return whether the token still logs in as `user`, who was read just now."""
        if self.until is not None and time.time() >= self.until:
            return False
        return str(user.pk) == self.user and user.is_active and constant_time_compare(self.stamp, _stamp(user))


def claim_of(token: str) -> Claim | None:
    """Return what `token` claims, None where it is forged."""
    try:
        user, stamp, until = signing.loads(token, salt=SALT)
    except (signing.BadSignature, ValueError, TypeError):
        return None
    return Claim(str(user), str(stamp), until)


def user_of(claim: Claim) -> Any | None:
    """Return the active user whom a claim logs in as, None where it has lapsed or is void. Queries once."""
    return users_of([claim])[0]


def users_of(claims: Sequence[Claim]) -> list[Any | None]:
    """Return what `user_of` does of each claim. Queries once for all."""
    model = get_user_model()
    keys = [_key_of(claim, model) for claim in claims]
    users = model._default_manager.in_bulk({key for key in keys if key is not None})
    found = ((claim, users.get(key)) for claim, key in zip(claims, keys, strict=True))
    return [user if user is not None and claim.holds_for(user) else None for claim, user in found]


def _key_of(claim: Claim, model: Any) -> Any | None:
    try:
        return model._meta.pk.to_python(claim.user)
    except ValidationError:  # the site has changed its user model since
        return None
