"""Who is at the other end: session, token (PROTOCOL section 1). `origin` says which pages may connect."""

from __future__ import annotations

import enum
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any, NamedTuple

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import DatabaseError, InterfaceError, OperationalError

from delivery import policy, tokens
from delivery.protocol.codes import CLOSE_CODES
from delivery.server import origin, sessions
from delivery.tokens import Claim

logger = logging.getLogger(__name__)


class Refusal(enum.Enum):
    """Why nobody is logged in."""

    MISSING = "login missing"
    WRONG = CLOSE_CODES[4401].reason


LOGGED_OUT = "logged out"  # the reason of a close with 4401 where the user ended the login


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
            origin=origin.origin_of(scope),
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
            user = sessions.user_of(key)
            # A session of somebody who never logged in is no wrong login.
            return Refusal.MISSING if user is None else _allowed(Login(user, session=key))


def login_of_token(token: str | None) -> Login | Refusal:
    """Return whom a token logs in: of the header, or of a hello. Queries the database."""
    if token is None:
        return Refusal.MISSING
    claim = tokens.claim_of(token)
    user = None if claim is None else tokens.user_of(claim)
    return Refusal.WRONG if user is None else _allowed(Login(user, claim=claim))


def logins_of(requests: Sequence[Request]) -> list[Login | Refusal | Exception]:
    """Return of each request what `login_of` returns or raises. Three queries for all who are let in as usual.

    Raises where the database does not answer.
    """
    try:
        known = _known(requests)
    except (OperationalError, InterfaceError):
        raise
    except Exception:  # one of them asks what the database does not take: the others are not to suffer from it
        logger.info("logins are looked up one by one", exc_info=True)
        known = {}
    return [_outcome(request, known) for request in requests]


def _known(requests: Sequence[Request]) -> dict[Proof, Login]:
    """Return whom tokens and sessions log in beyond doubt."""
    proofs = {proof for one in requests if (proof := one.proof) is not None}
    keys = {proof.text for proof in proofs if proof.kind is Kind.SESSION}
    known = {Proof(Kind.SESSION, key): Login(user, session=key) for key, user in sessions.users_of(keys).items()}
    told = {proof: tokens.claim_of(proof.text) for proof in proofs if proof.kind is Kind.TOKEN}
    claims = {proof: claim for proof, claim in told.items() if claim is not None}
    users = tokens.users_of(list(claims.values()))
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
    """Return of each login whether it would be let in now. Three queries for all, where nothing is out of the way."""
    rules = policy.current()
    keys = {login.user.pk for login in logins}
    users = get_user_model()._default_manager.in_bulk(keys)
    by_session = sessions.users_of({login.session for login in logins if login.session})
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
        ended = login.session is not None and sessions.is_gone(login.session)
    except DatabaseError:  # the login does not hold, whatever the reason
        ended = False
    return LOGGED_OUT if ended else Refusal.WRONG.value


def _may_stay(rules: policy.DefaultPolicy, user: Any) -> bool:
    """Ask the site's policy; one that fails over a user lets that user go, and keeps the answer from nobody else."""
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
    found = by_session[key] if key in by_session else sessions.user_of(key)
    return found is not None and found.pk == user.pk
