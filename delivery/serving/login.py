"""Who is at the other end: Origin, session, token (PROTOCOL section 1)."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import get_user
from django.http.request import validate_host

from delivery import conf, policy, tokens


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
    parts = urlsplit(request.origin)
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


def user_of(request: Request) -> Any | Refusal:
    """Return the user whom the handshake logs in. Queries the database.

    A session counts only beside an Origin, which only browsers send; everybody else brings a token.
    """
    if request.bearer is not None:
        return _allowed(tokens.user_of_token(request.bearer))
    if request.origin is None or request.session is None:
        return Refusal.MISSING
    engine = import_module(settings.SESSION_ENGINE)
    session = engine.SessionStore(request.session)
    user = get_user(SimpleNamespace(session=session))  # type: ignore[arg-type]
    # A session of somebody who never logged in is no wrong login.
    return _allowed(user) if user.is_authenticated else Refusal.MISSING


def user_of_token(token: str | None) -> Any | Refusal:
    """Return the user whom the `token` of a hello logs in. Queries the database."""
    return Refusal.MISSING if token is None else _allowed(tokens.user_of_token(token))


def _allowed(user: Any | None) -> Any | Refusal:
    return user if user is not None and policy.current().may_connect(user) else Refusal.WRONG
