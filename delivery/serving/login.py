"""Who is at the other end: Origin, session, token (PROTOCOL section 1)."""

from __future__ import annotations

import enum
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import get_user, get_user_model
from django.db import DatabaseError
from django.http.request import validate_host

from delivery import conf, policy, tokens
from delivery.tokens import Claim

logger = logging.getLogger(__name__)


class Refusal(enum.Enum):
    """Why nobody is logged in."""

    MISSING = "login missing"
    WRONG = "login wrong or expired"


@dataclass(frozen=True, slots=True)
class Request:
    """What an opening handshake says about its sender."""

    origin: str | None
    host: str
    secure: bool
    bearer: str | None
    session: str | None

    @classmethod
    def of(cls, scope: dict[str, Any]) -> Request:
        """Read an ASGI scope."""
        headers: dict[bytes, bytes] = dict(scope.get("headers", ()))
        scheme, _, credentials = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        return cls(
            origin=headers[b"origin"].decode("latin-1") if b"origin" in headers else None,
            host=headers.get(b"host", b"").decode("latin-1"),
            secure=scope.get("scheme") == "wss",
            bearer=credentials.strip() if scheme.lower() == "bearer" else None,
            session=_session_key(headers.get(b"cookie", b"").decode("latin-1")),
        )


def _session_key(header: str) -> str | None:
    try:
        cookie = SimpleCookie(header).get(settings.SESSION_COOKIE_NAME)
    except CookieError:
        return None
    return cookie.value if cookie else None


def origin_allowed(request: Request) -> bool:
    """Return whether a browser of this Origin may connect; a client that sends none is no browser."""
    if request.origin is None:
        return True
    allowed = conf.current().allowed_origins
    try:
        parts = urlsplit(request.origin)
    except ValueError:  # "http://[": no address that any browser sends
        return False
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return False
    if allowed is not None:
        return request.origin.lower() in {origin.lower() for origin in allowed}
    hosts = settings.ALLOWED_HOSTS or (["localhost", "127.0.0.1", "[::1]"] if settings.DEBUG else [])
    if hosts == ["*"]:
        # Every host is ours, so only a page of the very host that is asked may connect.
        return parts.netloc.lower() == request.host.lower()
    hostname = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return validate_host(hostname, hosts)


@dataclass(frozen=True, slots=True)
class Login:
    """A user, and what proves that it is them: a token's claim, or the key of a session."""

    user: Any
    claim: Claim | None = None
    session: str | None = None


def login_of(request: Request) -> Login | Refusal:
    """Return whom the handshake logs in. Queries the database.

    A session counts only beside an Origin, which only browsers send; everybody else brings a token.
    """
    if request.bearer is not None:
        return login_of_token(request.bearer)
    if request.origin is None or request.session is None:
        return Refusal.MISSING
    user = _user_of_session(request.session)
    # A session of somebody who never logged in is no wrong login.
    return Refusal.MISSING if user is None else _allowed(Login(user, session=request.session))


def login_of_token(token: str | None) -> Login | Refusal:
    """Return whom a token logs in: of the header, or of a hello. Queries the database."""
    if token is None:
        return Refusal.MISSING
    claim = tokens.claim_of(token)
    user = None if claim is None else tokens.user_of(claim)
    return Refusal.WRONG if user is None else _allowed(Login(user, claim=claim))


def _user_of_session(key: str) -> Any | None:
    engine = import_module(settings.SESSION_ENGINE)
    user = get_user(SimpleNamespace(session=engine.SessionStore(key)))  # type: ignore[arg-type]
    return user if user.is_authenticated else None


def _allowed(login: Login) -> Login | Refusal:
    return login if policy.current().may_connect(login.user) else Refusal.WRONG


def still_valid(logins: Sequence[Login]) -> list[bool]:
    """Return of each login whether it would be let in now. One query for all tokens, one for each session."""
    rules = policy.current()
    keys = {login.user.pk for login in logins}
    users = get_user_model()._default_manager.in_bulk(keys)
    return [_holds(login, users.get(login.user.pk)) and _may_stay(rules, users[login.user.pk]) for login in logins]


def _may_stay(rules: policy.DefaultPolicy, user: Any) -> bool:
    """Ask the site's policy; one that fails over a user lets that user go, and keeps the answer from nobody else."""
    try:
        return rules.may_connect(user)
    except DatabaseError:
        raise
    except Exception:
        logger.exception("may_connect fails for %s", policy.address_of(user))
        return False


def _holds(login: Login, user: Any | None) -> bool:
    if user is None:
        return False
    if login.claim is not None:
        return login.claim.holds_for(user)
    found = _user_of_session(login.session or "")
    return found is not None and found.pk == user.pk
