"""Logins that are looked up together are answered as each alone would be, whatever sessions and users a site has."""

from __future__ import annotations

import datetime
import importlib
from typing import Any

import pytest
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.auth.backends import ModelBackend
from django.contrib.sessions.models import Session
from django.db import OperationalError
from django.test import override_settings
from django.utils import timezone

from delivery import auth
from delivery.auth import Login, Refusal, Request, logins_of
from delivery.policy import DefaultPolicy

pytestmark = pytest.mark.django_db

ENGINES = ("db", "cached_db", "cache", "signed_cookies", "file")
MODEL_BACKEND = "django.contrib.auth.backends.ModelBackend"
PICKY_BACKEND = f"{__name__}.PickyBackend"


class PickyBackend(ModelBackend):
    """Gets users in its own way: nobody whose name begins with z."""

    def get_user(self, user_id: Any) -> Any:
        found = super().get_user(user_id)
        return None if found is not None and found.get_username().startswith("z") else found


class FailingPolicy(DefaultPolicy):
    def may_connect(self, user: Any) -> bool:
        if user.username == "alice":
            raise LookupError("alice")
        return super().may_connect(user)


def person(name: str, **fields: Any) -> Any:
    return get_user_model().objects.create(username=name, password=f"!{name}", **fields)


def session_of(user: Any, *, backend: str = MODEL_BACKEND, **changes: Any) -> str:
    """Make a session that logs in `user`; return its key."""
    store = importlib.import_module(auth.settings.SESSION_ENGINE).SessionStore()
    store[SESSION_KEY], store[BACKEND_SESSION_KEY] = str(user.pk), backend
    store[HASH_SESSION_KEY] = user.get_session_auth_hash()
    store.update(changes)
    store.save()
    return str(store.session_key)


def with_session(key: str | None, *, origin: str | None = "http://localhost") -> Request:
    return Request(origin=origin, bearer=None, session=key)


def outcome(found: Login | Refusal | Exception) -> Any:
    return found.user.pk if isinstance(found, Login) else found


def together_and_alone(requests: list[Request]) -> list[Any]:
    """Return the outcomes, having seen that they are the same both ways."""
    together = [outcome(one) for one in logins_of(requests)]
    assert together == [outcome(auth.login_of(request)) for request in requests]
    return together


@pytest.mark.parametrize("engine", ENGINES)
def test_sessions_of_every_engine_log_in(engine: str, tmp_path: Any) -> None:
    with override_settings(
        SESSION_ENGINE=f"django.contrib.sessions.backends.{engine}", SESSION_FILE_PATH=str(tmp_path)
    ):
        alice, bob, gone = person("alice"), person("bob"), person("gone", is_active=False)
        requests = [
            with_session(session_of(alice)),
            with_session(session_of(bob)),
            with_session(session_of(gone)),
            with_session(session_of(alice, **{HASH_SESSION_KEY: "of an old password"})),
            with_session(session_of(alice), origin=None),
            with_session("nobodys" * 4),
            with_session("short"),
            with_session(""),
            with_session(None),
        ]
        assert together_and_alone(requests) == [alice.pk, bob.pk, *[Refusal.MISSING] * 7]


def test_tokens_log_in() -> None:
    alice, gone, changed = person("alice"), person("gone", is_active=False), person("changed")
    old = auth.make_token(changed)
    changed.password = "!another"
    changed.save()
    asked = [
        auth.make_token(alice),
        auth.make_token(alice),
        auth.make_token(alice, expires=-1),
        auth.make_token(gone),
        old,
        auth.make_token(get_user_model()(pk=4711, password="!")),
        auth.make_token(get_user_model()(pk="no number", password="!")),
        "forged",
        "",
    ]
    requests = [Request.with_token(token) for token in asked]
    assert together_and_alone(requests) == [alice.pk, alice.pk, *[Refusal.WRONG] * 7]


def test_a_token_is_no_session_key_and_a_key_no_token() -> None:
    alice = person("alice")
    key, token = session_of(alice), auth.make_token(alice)
    requests = [
        with_session(key),
        Request.with_token(token),
        with_session(token),
        Request.with_token(key),
    ]
    assert together_and_alone(requests) == [alice.pk, alice.pk, Refusal.MISSING, Refusal.WRONG]


def test_a_backend_of_the_sites_own_is_asked() -> None:
    with override_settings(AUTHENTICATION_BACKENDS=[PICKY_BACKEND, MODEL_BACKEND]):
        alice, zoe = person("alice"), person("zoe")
        requests = [
            with_session(session_of(alice, backend=PICKY_BACKEND)),
            with_session(session_of(zoe, backend=PICKY_BACKEND)),
            with_session(session_of(zoe)),
        ]
        assert together_and_alone(requests) == [alice.pk, Refusal.MISSING, zoe.pk]


def test_a_backend_that_the_site_gave_up_logs_in_nobody() -> None:
    requests = [with_session(session_of(person("alice"), backend=PICKY_BACKEND))]
    assert together_and_alone(requests) == [Refusal.MISSING]


def test_a_session_under_a_former_secret_is_left_to_django() -> None:
    alice = person("alice")
    with override_settings(SECRET_KEY="former"):
        of_then = alice.get_session_auth_hash()
    key = session_of(alice, **{HASH_SESSION_KEY: of_then})
    with override_settings(SECRET_KEY_FALLBACKS=["former"]):
        assert auth.users_of_sessions([key]) == {}
        assert outcome(logins_of([with_session(key)])[0]) == alice.pk


def test_a_session_that_is_over_logs_in_nobody() -> None:
    key = session_of(person("alice"))
    Session.objects.update(expire_date=timezone.now() - datetime.timedelta(seconds=1))
    assert together_and_alone([with_session(key)]) == [Refusal.MISSING]


def test_a_crowd_costs_three_queries(django_assert_num_queries: Any) -> None:
    crowd = [person(f"person{number}") for number in range(20)]
    requests = [
        Request.with_token(auth.make_token(one)) if number % 2 else with_session(session_of(one))
        for number, one in enumerate(crowd)
    ]
    with django_assert_num_queries(3):
        found = logins_of(requests)
    assert [outcome(one) for one in found] == [one.pk for one in crowd]


def test_a_policy_that_fails_over_one_fails_that_one_alone() -> None:
    crowd = [person("alice"), person("bob")]
    with override_settings(DELIVERY={"POLICY": f"{__name__}.FailingPolicy"}):
        found = logins_of([Request.with_token(auth.make_token(one)) for one in crowd])
    assert isinstance(found[0], LookupError)
    assert outcome(found[1]) == crowd[1].pk


def test_what_the_database_does_not_take_fails_alone() -> None:
    """A key so large that no query with it can be made, among others."""
    alice, key = person("alice"), 2**70
    impossible = auth.make_token(get_user_model()(pk=key, password="!"))
    found = logins_of([Request.with_token(auth.make_token(alice)), Request.with_token(impossible)])
    assert outcome(found[0]) == alice.pk
    assert not isinstance(found[1], Login)


def test_a_database_that_is_away_fails_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_claims: Any) -> Any:
        raise OperationalError("away")

    token = auth.make_token(person("alice"))
    monkeypatch.setattr(auth, "users_of_claims", away)
    with pytest.raises(OperationalError):
        logins_of([Request.with_token(token)])


def test_sessions_are_looked_at_again_together(django_assert_num_queries: Any) -> None:
    crowd = [person(f"person{number}") for number in range(5)]
    held = [Login(one, session=session_of(one)) for one in crowd]
    with django_assert_num_queries(3):
        assert auth.still_valid(held) == [True] * 5
    Session.objects.filter(pk=held[1].session).delete()
    crowd[2].is_active = False
    crowd[2].save()
    held[3] = Login(crowd[3], session=held[4].session)
    assert auth.still_valid(held) == [True, False, False, False, True]
