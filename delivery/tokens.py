"""Tokens: a login for clients that are no browsers. Signed, and void after a change of password."""

from __future__ import annotations

import time
from typing import Any

from django.contrib.auth import get_user_model
from django.core import signing
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


def user_of_token(token: str) -> Any | None:
    """Return the active user whom `token` logs in as, or None where it is forged, expired or void. Queries once."""
    try:
        key, stamp, until = signing.loads(token, salt=SALT)
    except (signing.BadSignature, ValueError, TypeError):
        return None
    if until is not None and time.time() >= until:
        return None
    user = get_user_model()._default_manager.filter(pk=key, is_active=True).first()
    if user is None or not constant_time_compare(stamp, _stamp(user)):
        return None
    return user
