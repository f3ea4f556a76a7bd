"""Whom Django's sessions log in: as `django.contrib.auth.get_user` says, many sessions in two queries.

Only the plain case is answered together: sessions in the database as Django has them, users as its `ModelBackend` gets
them, a hash under today's key. For all else (another engine or backend, a key that was rotated, a session that is gone or
void) Django itself is asked, one session at a time, so that nobody is let in whom it would not let in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from types import SimpleNamespace
from typing import Any

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
from django.core.exceptions import ValidationError
from django.utils import timezone
from django.utils.crypto import constant_time_compare


def user_of(key: str) -> Any | None:
    """Return the user whom a session logs in, None where it logs in nobody. Queries the database."""
    user = get_user(SimpleNamespace(session=_engine()(key)))  # type: ignore[arg-type]
    return user if user.is_authenticated else None


def is_gone(key: str) -> bool:
    """Return whether a session was removed from the database: its user logged out. Queries the database."""
    engine = _engine()
    return issubclass(engine, SessionStore) and not engine().exists(key)


def users_of(keys: Collection[str]) -> dict[str, Any]:
    """Return the users of sessions, by key, as far as that is plain; who is missing here may have one all the same.

    At most two queries.
    """
    if not keys or _engine() is not SessionStore:
        return {}
    sessions = dict(_sessions(keys))
    wanted = {key: _plain_user_key(session) for key, session in sessions.items()}
    users = get_user_model()._default_manager.in_bulk({pk for pk in wanted.values() if pk is not None})
    found = ((key, users.get(wanted[key]), session) for key, session in sessions.items())
    return {key: user for key, user, session in found if user is not None and _holds(session, user)}


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


def _holds(session: Mapping[str, Any], user: Any) -> bool:
    """Return whether `user`, read just now, may log in and has the password that the session was made with."""
    backend: Any = load_backend(session[BACKEND_SESSION_KEY])
    found = session.get(HASH_SESSION_KEY)
    if not (found and hasattr(user, "get_session_auth_hash") and backend.user_can_authenticate(user)):
        return False
    return constant_time_compare(found, user.get_session_auth_hash())
