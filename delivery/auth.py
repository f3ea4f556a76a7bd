"""Authentication of a socket: its Origin, and its login by session or token (PROTOCOL section 1).

Origin: it must equal the scheme, host and port of the handshake, as in Django's CSRF check. `SECURE_PROXY_SSL_HEADER`,
`USE_X_FORWARDED_HOST` and `ALLOWED_HOSTS` apply; `CSRF_TRUSTED_ORIGINS` adds other Origins. If `DELIVERY["ALLOWED_ORIGINS"]` is
set, it is the whole list instead, compared literally.

Session: the same answer as `django.contrib.auth.get_user`. Simultaneous logins share two queries in the usual case: sessions in
Django's own table, users by its `ModelBackend`, a hash under the current key. All other sessions (another engine or backend, a
rotated key, a missing or void session) are looked up by Django itself, one at a time. So nobody gets in whom Django would refuse.

Token: a signed login for clients other than browsers. A change of password voids it.
"""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import (
    BACKEND_SESSION_KEY,
    HASH_SESSION_KEY,
    SESSION_KEY,
    get_user,
    get_user_model,
    load_backend,
)
from django.contrib.auth.backends import ModelBackend
from django.contrib.sessions.backends.db import SessionStore
from django.core import signing
from django.core.exceptions import DisallowedHost, ValidationError
from django.db import DatabaseError, InterfaceError, OperationalError
from django.http import HttpRequest
from django.utils import timezone
from django.utils.crypto import constant_time_compare, salted_hmac
from django.utils.http import is_same_domain

from delivery import conf, policy
from delivery.escaping import printable
from delivery.protocol.codes import CLOSE_CODES

logger = logging.getLogger(__name__)

MOST_LOGGED = 200  # characters of what a stranger sent
MOST_A_MINUTE = 20  # refusals logged
TOKEN_SALT = "delivery.token"
LOGGED_OUT = "logged out"  # the reason of a close with 4401 where the user ended the login


# -- origin --------------------------------------------------------------------------------------------------------------

_logged: set[tuple[int, str, str]] = set()


class Handshake(HttpRequest):
    """The opening handshake of an ASGI scope, as far as Django's own properties of a request tell where it was sent."""

    def __init__(self, scope: dict[str, Any]) -> None:
        super().__init__()
        self._secure = scope.get("scheme") in ("wss", "https")
        host, port = scope.get("server") or ("unknown", 0)
        self.META = {"SERVER_NAME": str(host), "SERVER_PORT": str(port)}
        for name, value in scope.get("headers", ()):
            key = f"HTTP_{name.decode('latin-1').upper().replace('-', '_')}"
            text = value.decode("latin-1")
            self.META[key] = f"{self.META[key]},{text}" if key in self.META else text

    def _get_scheme(self) -> str:
        """Return the scheme of the page's own site: that of HTTP, not of WebSocket."""
        return "https" if self._secure else "http"


def origin_of(scope: dict[str, Any]) -> str | None:
    """Return the Origin of a handshake, None if it has none and so comes from no browser."""
    found = [value.decode("latin-1") for name, value in scope.get("headers", ()) if name == b"origin"]
    return ",".join(found) if found else None  # two Origins joined match nothing


def origin_allowed(scope: dict[str, Any]) -> bool:
    """Return whether a browser of this handshake's Origin may connect. A refusal is logged with what it was compared to."""
    origin = origin_of(scope)
    if origin is None:
        return True
    reason = _origin_refusal(origin, scope)
    if reason:
        _log_refusal(origin, reason)
    return not reason


def _origin_refusal(origin: str, scope: dict[str, Any]) -> str:
    """Return why an Origin is refused, an empty text where it is not."""
    if not _is_origin(origin):
        return "that is no Origin of a page"
    listed = conf.current().allowed_origins
    if listed is not None:
        return "" if origin.lower() in map(str.lower, listed) else "DELIVERY['ALLOWED_ORIGINS'] does not list it"
    request = Handshake(scope)
    site = _site(request)
    if origin.lower() == site.lower() or _is_trusted(origin):
        return ""
    if not site:
        return f"it was sent to the host {_shown(request.META.get('HTTP_HOST', ''))}, which is not in ALLOWED_HOSTS"
    return (
        f"it was sent to {_shown(site)}, as the handshake says. If that is the same site, a proxy in front drops the scheme or the "
        "port: have it pass on Host as it came, and X-Forwarded-Proto. CSRF_TRUSTED_ORIGINS lets other sites in"
    )


def _log_refusal(origin: str, reason: str) -> None:
    """Log a refusal: each once a minute, and only a few per minute, since strangers choose the text."""
    minute = int(time.monotonic() // 60)
    _logged.difference_update([one for one in _logged if one[0] != minute])
    entry = (minute, origin, reason)
    if entry not in _logged and len(_logged) < MOST_A_MINUTE:
        _logged.add(entry)
        logger.warning("a handshake with the Origin %s is refused: %s", _shown(origin), reason)


def _is_origin(text: str) -> bool:
    """Return whether `text` is a scheme, a host and maybe a port, as a browser writes an Origin."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:  # "http://[", or a port that is none
        return False
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return False
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    bare = f"{parts.scheme}://{host}" + ("" if port is None else f":{port}")
    return text.isascii() and text.lower() == bare.lower()


def _site(request: Handshake) -> str:
    """Return scheme and host that the handshake was sent to; an empty text where that host is not ours."""
    try:
        return f"{request.scheme}://{request.get_host()}"
    except DisallowedHost:
        return ""


def _is_trusted(origin: str) -> bool:
    scheme, _, host = origin.lower().partition("://")
    for trusted in settings.CSRF_TRUSTED_ORIGINS:
        trusted_scheme, _, pattern = trusted.lower().partition("://")
        if scheme != trusted_scheme:
            continue
        if is_same_domain(host, pattern.lstrip("*")) if "*" in pattern else host == pattern:
            return True
    return False


def _shown(text: str) -> str:
    return printable(text[:MOST_LOGGED])


# -- sessions ------------------------------------------------------------------------------------------------------------


def user_of_session(key: str) -> Any | None:
    """Return the user whom a session logs in, None where it logs in nobody. Queries the database."""
    user = get_user(SimpleNamespace(session=_engine()(key)))  # type: ignore[arg-type]
    return user if user.is_authenticated else None


def session_is_gone(key: str) -> bool:
    """Return whether a session was removed from the database: its user logged out. Queries the database."""
    engine = _engine()
    return issubclass(engine, SessionStore) and not engine().exists(key)


def users_of_sessions(keys: Collection[str]) -> dict[str, Any]:
    """Return the users of sessions, by key, in the usual case. A session that is missing here may still be valid.

    At most two queries.
    """
    if not keys or _engine() is not SessionStore:
        return {}
    sessions = dict(_sessions(keys))
    wanted = {key: _plain_user_key(session) for key, session in sessions.items()}
    users = get_user_model()._default_manager.in_bulk({pk for pk in wanted.values() if pk is not None})
    found = ((key, users.get(wanted[key]), session) for key, session in sessions.items())
    return {key: user for key, user, session in found if user is not None and _session_holds(session, user)}


def _engine() -> Any:
    return import_module(settings.SESSION_ENGINE).SessionStore


def _sessions(keys: Collection[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    rows = SessionStore.get_model_class().objects.filter(session_key__in=keys, expire_date__gt=timezone.now())
    for row in rows:
        yield row.session_key, SessionStore(row.session_key).decode(row.session_data)


def _plain_user_key(session: Mapping[str, Any]) -> Any | None:
    """Return the primary key of the user of a session whose backend gets users as Django's own does."""
    path = session.get(BACKEND_SESSION_KEY, "")
    if path not in settings.AUTHENTICATION_BACKENDS:
        return None
    if getattr(type(load_backend(path)), "get_user", None) is not ModelBackend.get_user:
        return None
    try:
        return get_user_model()._meta.pk.to_python(session[SESSION_KEY])
    except (KeyError, ValidationError):
        return None


def _session_holds(session: Mapping[str, Any], user: Any) -> bool:
    """Return whether `user`, read just now, may log in and has the password that the session was made with."""
    backend: Any = load_backend(session[BACKEND_SESSION_KEY])
    found = session.get(HASH_SESSION_KEY)
    if not (found and hasattr(user, "get_session_auth_hash") and backend.user_can_authenticate(user)):
        return False
    return constant_time_compare(found, user.get_session_auth_hash())


# -- tokens --------------------------------------------------------------------------------------------------------------


def _stamp(user: Any) -> str:
    """Return a stamp that changes with the password and reveals nothing of it."""
    return salted_hmac(TOKEN_SALT, f"{user.pk}:{user.password}", algorithm="sha256").hexdigest()[:20]


def make_token(user: Any, *, expires: float | None = None) -> str:
    """Return a token that logs in as `user`.

    `expires`: seconds from now after which it is refused; None is never. A change of password voids it at once.
    """
    until = None if expires is None else int(time.time() + expires)
    return signing.dumps([str(user.pk), _stamp(user), until], salt=TOKEN_SALT, compress=False)


@dataclass(frozen=True, slots=True)
class Claim:
    """The content of a genuine token: its user, the stamp of their password then, and its expiry (Unix seconds)."""

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
        user, stamp, until = signing.loads(token, salt=TOKEN_SALT)
    except (signing.BadSignature, ValueError, TypeError):
        return None
    return Claim(str(user), str(stamp), until)


def user_of_claim(claim: Claim) -> Any | None:
    """Return the active user whom a claim logs in as, None if it is expired or void. Queries once."""
    return users_of_claims([claim])[0]


def users_of_claims(claims: Sequence[Claim]) -> list[Any | None]:
    """Return what `user_of_claim` returns, for each claim. Queries once for all."""
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


# -- logins --------------------------------------------------------------------------------------------------------------


class Refusal(enum.Enum):
    """Why nobody is logged in."""

    MISSING = "login missing"
    WRONG = CLOSE_CODES[4401].reason


class Kind(enum.Enum):
    """What a login is proven with."""

    TOKEN = enum.auto()
    SESSION = enum.auto()


class Proof(NamedTuple):
    """A token, or the key of a session."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Request:
    """What an opening handshake says about its sender."""

    origin: str | None
    bearer: str | None
    session: str | None

    @property
    def proof(self) -> Proof | None:
        """A session counts only beside an Origin, which only browsers send; everybody else brings a token."""
        if self.bearer is not None:
            return Proof(Kind.TOKEN, self.bearer)
        if self.origin is None or self.session is None:
            return None
        return Proof(Kind.SESSION, self.session)

    @classmethod
    def with_token(cls, token: str) -> Request:
        """Return what a client asks whose token came in its hello."""
        return cls(origin=None, bearer=token, session=None)

    @classmethod
    def of(cls, scope: dict[str, Any]) -> Request:
        """Read an ASGI scope."""
        headers: dict[bytes, bytes] = dict(scope.get("headers", ()))
        scheme, _, credentials = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        return cls(
            origin=origin_of(scope),
            bearer=credentials.strip() if scheme.lower() == "bearer" else None,
            session=_session_key(headers.get(b"cookie", b"").decode("latin-1")),
        )


def _session_key(header: str) -> str | None:
    try:
        cookie = SimpleCookie(header).get(settings.SESSION_COOKIE_NAME)
    except CookieError:
        return None
    # A quoted value may hold any character. No key has a NUL, over which PostgreSQL raises.
    return cookie.value if cookie and "\0" not in cookie.value else None


@dataclass(frozen=True, slots=True)
class Login:
    """A user, and what proves that it is them: a token's claim, or the key of a session."""

    user: Any
    claim: Claim | None = None
    session: str | None = None


def login_of(request: Request) -> Login | Refusal:
    """Return whom the handshake logs in. Queries the database."""
    match request.proof:
        case None:
            return Refusal.MISSING
        case Proof(Kind.TOKEN, token):
            return login_of_token(token)
        case Proof(_, key):
            user = user_of_session(key)
            # A session of somebody who never logged in is no wrong login.
            return Refusal.MISSING if user is None else _allowed(Login(user, session=key))


def login_of_token(token: str | None) -> Login | Refusal:
    """Return whom a token logs in: of the header, or of a hello. Queries the database."""
    if token is None:
        return Refusal.MISSING
    claim = claim_of(token)
    user = None if claim is None else user_of_claim(claim)
    return Refusal.WRONG if user is None else _allowed(Login(user, claim=claim))


def logins_of(requests: Sequence[Request]) -> list[Login | Refusal | Exception]:
    """Return of each request what `login_of` returns or raises. Three queries for all who are let in as usual.

    Raises where the database does not answer.
    """
    try:
        known = _known(requests)
    except (OperationalError, InterfaceError):
        raise
    except Exception:  # one login holds a value that the database refuses: the others must not fail with it
        logger.info("logins are looked up one by one", exc_info=True)
        known = {}
    return [_outcome(request, known) for request in requests]


def _known(requests: Sequence[Request]) -> dict[Proof, Login]:
    """Return the users of the tokens and sessions that are plainly valid."""
    proofs = {proof for one in requests if (proof := one.proof) is not None}
    keys = {proof.text for proof in proofs if proof.kind is Kind.SESSION}
    known = {Proof(Kind.SESSION, key): Login(user, session=key) for key, user in users_of_sessions(keys).items()}
    told = {proof: claim_of(proof.text) for proof in proofs if proof.kind is Kind.TOKEN}
    claims = {proof: claim for proof, claim in told.items() if claim is not None}
    users = users_of_claims(list(claims.values()))
    for (proof, claim), user in zip(claims.items(), users, strict=True):
        if user is not None:
            known[proof] = Login(user, claim=claim)
    return known


def _outcome(request: Request, known: Mapping[Proof, Login]) -> Login | Refusal | Exception:
    found = None if request.proof is None else known.get(request.proof)
    try:
        return login_of(request) if found is None else _allowed(found)
    except Exception as error:  # noqa: BLE001 - it is this connection's
        return error


def _allowed(login: Login) -> Login | Refusal:
    return login if policy.current().may_connect(login.user) else Refusal.WRONG


def still_valid(logins: Sequence[Login]) -> list[bool]:
    """Return whether each login is still valid. Three queries for all, in the usual case."""
    rules = policy.current()
    keys = {login.user.pk for login in logins}
    users = get_user_model()._default_manager.in_bulk(keys)
    by_session = users_of_sessions({login.session for login in logins if login.session})
    return [
        _holds(login, users.get(login.user.pk), by_session) and _may_stay(rules, users[login.user.pk])
        for login in logins
    ]


def end_of(login: Login) -> str:
    """Return the reason for closing the connection of a login that holds no more (PROTOCOL section 6). Queries the database.

    A session that is gone from the database was ended by its user. One that expired is there until it is cleaned up; other
    engines do not tell the two apart.
    """
    try:
        ended = login.session is not None and session_is_gone(login.session)
    except DatabaseError:  # the login does not hold, whatever the reason
        ended = False
    return LOGGED_OUT if ended else Refusal.WRONG.value


def _may_stay(rules: policy.DefaultPolicy, user: Any) -> bool:
    """Ask the site's policy. If it raises for a user, only that user is refused."""
    try:
        return rules.may_connect(user)
    except DatabaseError:
        raise
    except Exception:
        logger.exception("may_connect fails for %s", policy.address_of(user))
        return False


def _holds(login: Login, user: Any | None, by_session: Mapping[str, Any]) -> bool:
    if user is None:
        return False
    if login.claim is not None:
        return login.claim.holds_for(user)
    key = login.session or ""
    found = by_session[key] if key in by_session else user_of_session(key)
    return found is not None and found.pk == user.pk
