"""`manage.py check` finds each thing that a site has not connected, by its own id, and connects to nothing itself."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from django.conf import settings as site_settings
from django.db import connections
from django.test import override_settings

from delivery import DefaultPolicy, dispatch
from delivery.checks import celery, integration
from tests.launch.live import manage

FILES = "django.core.files.storage.FileSystemStorage"


def ids(found: list[Any]) -> list[str]:
    return [message.id.removeprefix("delivery.") for message in found]


def with_delivery(**options: Any) -> Any:
    return override_settings(DELIVERY={**site_settings.DELIVERY, **options})


class Incomplete:
    def may_connect(self, user: Any) -> bool:
        return True


class Demanding(DefaultPolicy):
    def __init__(self, rules: str) -> None:
        self.rules = rules


def a_function() -> DefaultPolicy:
    return DefaultPolicy()


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("mysite.policy.Policy", "ModuleNotFoundError: No module named 'mysite'"),
        ("delivery.policy.Policy", 'does not define a "Policy"'),
        ("nothing", "ImportError"),
        (f"{__name__}.a_function", "not a class"),
        (f"{__name__}.Incomplete", "it has no may_send, may_join, group_members"),
        (f"{__name__}.Demanding", "'rules'"),
    ],
)
def test_a_policy_that_cannot_be_used(path: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or sys.modules[Incomplete.__module__])
    with with_delivery(POLICY=path):
        (message,) = integration.check_policy()
    assert message.id == "delivery.E008"
    assert says in message.msg


def test_a_policy_that_can() -> None:
    for path in ("delivery.policy.DefaultPolicy", "project.policy.DemoPolicy"):
        with with_delivery(POLICY=path):
            assert integration.check_policy() == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:6379",
        "http://127.0.0.1:6379/0",
        "valkey://127.0.0.1",
        "redis://host:port/0",
        "redis://host:70000/0",
        "redis://host:6379/mysite",
        "redis://[::1",
        "redis://host?nonsense=1",
        "unix://",
        "unix:///run/redis.sock?db=x",
    ],
)
def test_a_redis_url_that_cannot_be_read(url: str) -> None:
    with with_delivery(REDIS_URL=url):
        assert ids(integration.check_redis_url()) == ["E009"]


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://localhost",
        "redis://127.0.0.1:6379/0",
        "rediss://name:secret@redis.example:6380/3",
        "redis://[::1]:6379/0",
        "redis://host?db=3&health_check_interval=5",
        "unix:///run/redis.sock",
        "unix:///run/redis.sock?db=2",
    ],
)
def test_one_that_can_is_not_asked_whether_it_answers(url: str) -> None:
    with with_delivery(REDIS_URL=url):
        assert integration.check_redis_url() == []


def test_no_message_repeats_a_password() -> None:
    """A slash that is not escaped makes a part of a password look like a port."""
    with with_delivery(REDIS_URL="redis://:hunter2/x@host:6379/0"):
        (message,) = integration.check_redis_url()
    assert "hunter2" not in f"{message.msg}{message.hint}"


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ({}, ["E010"]),
        ({"other": {"BACKEND": integration.LAYER}}, ["E010"]),
        ({"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}, ["W010"]),
        ({"default": {"BACKEND": integration.LAYER}}, []),
    ],
)
def test_the_channel_layer(layers: dict[str, Any], expected: list[str]) -> None:
    with override_settings(CHANNEL_LAYERS=layers):
        assert ids(integration.check_layer()) == expected


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({}, []),
        ({"broker_urls": ()}, ["W008"]),
        ({"sweeps": False}, ["W012"]),
        ({"unknown_transports": ("unix",)}, ["E012"]),
        ({"configured": False, "broker_urls": (), "sweeps": False}, []),  # delivery.W001 says it
    ],
)
def test_the_celery_app(members: dict[str, Any], expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    app = dataclasses.replace(dispatch.site_app(), **members)
    monkeypatch.setattr(dispatch, "site_app", lambda: app)
    assert ids(celery.check_broker()) == expected


def ask(code: str, **variables: str) -> str:
    """Run code as a process that knows no site but the one that it makes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DJANGO_", "CELERY_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, env=kept | variables
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


SITE = "from django.conf import settings; settings.configure(); from celery import Celery, current_app\n"
LOOK = "\nfrom delivery import dispatch; app = dispatch.site_app(); print("


def test_a_broker_in_the_environment_is_no_celery_app() -> None:
    said = ask(SITE + LOOK + "app.configured)", CELERY_BROKER_URL="redis://127.0.0.1/1")
    assert said == "False"


def test_an_app_that_comes_too_late_is_none() -> None:
    """Celery has made up one by then, and every thread but the importing one publishes with that."""
    late = SITE + "current_app.main; app = Celery('mysite', broker='redis://127.0.0.1/1')" + LOOK + "app.configured)"
    assert ask(late, DJANGO_SETTINGS_MODULE="project.settings") == "False"
    early = SITE + "app = Celery('mysite'); current_app.main" + LOOK + "app.configured)"
    assert ask(early, DJANGO_SETTINGS_MODULE="project.settings") == "True"


@pytest.mark.parametrize(
    ("options", "urls", "unknown"),
    [
        ("", "()", "()"),
        ("broker='redis://127.0.0.1/1'", "('redis://127.0.0.1/1',)", "()"),
        ("broker='redis+socket:///run/redis.sock?virtual_host=1'", None, "()"),
        ("broker='my.transport:Transport://host'", None, "()"),
        ("broker='unix:///run/redis.sock'", None, "('unix',)"),
        ("broker='127.0.0.1'", None, "()"),
    ],
)
def test_what_the_app_says_of_its_broker(options: str, urls: str | None, unknown: str) -> None:
    said = ask(
        SITE
        + f"celery = Celery('mysite'{', ' * bool(options)}{options})"
        + LOOK
        + "app.broker_urls, app.unknown_transports, sep='|')"
    )
    found, _, strange = said.partition("|")
    assert urls is None or found == urls
    assert strange == unknown


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("", "False"),
        ("celery.conf.beat_schedule = {'other': {'task': 'x', 'schedule': 1}}", "False"),
        ("celery.conf.beat_schedule = {'s': {'task': 'delivery.sweep', 'schedule': 30}}", "True"),
        ("celery.conf.beat_scheduler = 'django_celery_beat.schedulers:DatabaseScheduler'", "True"),
        ("celery.on_after_finalize.connect(lambda **k: None, weak=False)", "True"),
    ],
)
def test_what_the_app_says_of_beat(schedule: str, expected: str) -> None:
    assert ask(f"{SITE}celery = Celery('mysite')\n{schedule}{LOOK}app.sweeps)") == expected


@pytest.mark.parametrize(
    ("location", "media", "expected"),
    [
        ("/srv/payloads", "/srv/media", []),
        ("/srv/media", "/srv/media", ["W009"]),
        ("/srv/media/payloads", "/srv/media", ["W009"]),
        ("/srv/static/payloads", "/srv/media", ["W009"]),
        (None, "/srv/media", ["W009"]),  # no location: MEDIA_ROOT
        (None, "", ["W009"]),  # the current directory
        ("/srv/mediation", "/srv/media", []),
    ],
)
def test_where_payloads_are_kept(location: str | None, media: str, expected: list[str]) -> None:
    options = {"location": location} if location else {}
    storages = {"default": {"BACKEND": FILES}, "own": {"BACKEND": FILES, "OPTIONS": options}}
    with (
        override_settings(STORAGES=storages, MEDIA_ROOT=media, STATIC_ROOT="/srv/static"),
        with_delivery(STORAGE="own"),
    ):
        assert ids(integration.check_storage()) == expected


@pytest.mark.parametrize("backend", ["django.core.files.storage.InMemoryStorage", "not.installed.S3Storage"])
def test_a_storage_that_is_no_directory_is_left_alone(backend: str) -> None:
    with override_settings(STORAGES={"own": {"BACKEND": backend}}, MEDIA_ROOT="/srv"), with_delivery(STORAGE="own"):
        assert integration.check_storage() == []


class Router:
    """A router with the answers of one test."""

    writes: ClassVar[dict[str, str]] = {}
    reads: ClassVar[dict[str, str]] = {}

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return self.writes.get(model._meta.model_name) or self.writes.get(model._meta.app_label)

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return self.reads.get(model._meta.app_label) or self.db_for_write(model)


@pytest.mark.parametrize(
    ("writes", "reads", "expected"),
    [
        ({}, {}, []),
        ({"delivery": "second", "auth": "second"}, {}, []),
        ({"delivery": "second"}, {}, ["W015"]),
        ({"segment": "second"}, {}, ["E011"]),
        ({}, {"delivery": "copy"}, ["W014"]),
    ],
)
def test_routers(
    writes: dict[str, str], reads: dict[str, str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Router, "writes", writes)
    monkeypatch.setattr(Router, "reads", reads)
    monkeypatch.setattr("django.db.router.routers", [Router()])
    assert ids(integration.check_databases()) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["W013"]),
        ({"transaction_mode": "IMMEDIATE"}, ["W013"]),
        ({"init_command": "PRAGMA journal_mode=WAL"}, ["W013"]),
        ({"transaction_mode": "immediate", "init_command": "pragma journal_mode = wal"}, []),
    ],
)
def test_sqlite_with_several_processes(options: dict[str, str], expected: list[str], monkeypatch) -> None:
    monkeypatch.setitem(connections.settings, "default", {"ENGINE": "django.db.backends.sqlite3", "OPTIONS": options})
    assert ids(integration.check_databases()) == expected


def test_other_databases_need_no_such_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings, "default", {"ENGINE": "django.db.backends.postgresql"})
    assert integration.check_databases() == []


def test_urls_that_lead_nowhere() -> None:
    assert integration.check_urls() == []
    with override_settings(ROOT_URLCONF="django.contrib.auth.urls"):
        assert ids(integration.check_urls()) == ["W011"]


def test_the_reference_site_is_fine(tmp_path: Path) -> None:
    done = manage("check", DELIVERY_VAR=str(tmp_path))
    assert "no issues" in done.stdout, done.stdout + done.stderr
