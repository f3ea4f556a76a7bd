"""`manage.py check --deploy` fails on what lets strangers in, each by its own id; the reference site passes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from django.conf import settings as site_settings
from django.core.checks import ERROR
from django.test import override_settings

from delivery import dispatch
from delivery.checks import deployment
from tests.launch.live import manage

PUBSUB = "channels_redis.pubsub.RedisPubSubChannelLayer"


def ids(found: list[Any]) -> list[str]:
    return [message.id.removeprefix("delivery.") for message in found]


def with_delivery(**options: Any) -> Any:
    return override_settings(DELIVERY={**site_settings.DELIVERY, **options}, CHANNEL_LAYERS={})


def layer(backend: str, *hosts: Any) -> Any:
    return override_settings(CHANNEL_LAYERS={"default": {"BACKEND": backend, "CONFIG": {"hosts": list(hosts)}}})


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("unix:///run/redis.sock", []),
        ("redis://localhost:6379/0", []),
        ("redis://127.9.9.9:6379/0", []),
        ("redis://[::1]:6379/0", []),
        ("rediss://:secret@redis.example:6379/0", []),
        ("rediss://name:secret@10.0.0.7", []),
        ("rediss://redis.example", ["E101"]),
        ("redis://:secret@redis.example", ["E102"]),
        ("redis://10.0.0.7:6379", ["E101", "E102"]),
        ("redis://localhost.example:6379", ["E101", "E102"]),
    ],
)
def test_a_redis_elsewhere_needs_a_password_and_tls(url: str, expected: list[str]) -> None:
    with with_delivery(REDIS_URL=url):
        assert ids(deployment.check_redis()) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("redis://far.example", ["E101", "E102"]),
        (("far.example", 6379), ["E101", "E102"]),
        ({"address": "redis://far.example", "password": "x"}, ["E102"]),
        ({"address": ("far.example", 6379), "password": "x"}, ["E102"]),
        ({"address": "rediss://far.example", "password": "x"}, []),
        (("127.0.0.1", 6379), []),
    ],
)
def test_so_does_that_of_the_channel_layer(host: Any, expected: list[str]) -> None:
    with layer(PUBSUB, host):
        assert ids(deployment.check_redis()) == expected


def test_so_does_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    urls = dispatch._broker_urls("redis://far.example/1;amqp://other.example")
    monkeypatch.setattr(dispatch, "site_app", lambda: SimpleNamespace(broker_urls=urls))
    assert ids(deployment.check_redis()) == ["E101", "E102"]


def test_no_message_repeats_a_password() -> None:
    with with_delivery(REDIS_URL="redis://:hunter2@far.example"):
        assert "hunter2" not in str(deployment.check_redis())


def test_debug() -> None:
    with override_settings(DEBUG=True):
        assert ids(deployment.check_site()) == ["E103"]


@pytest.mark.parametrize(
    ("hosts", "origins", "expected"),
    [
        (["example.org"], None, []),
        (["*"], ["https://example.org"], []),
        (["*"], None, ["E104"]),
        (["example.org"], ["https://example.org", "*"], ["E104"]),
    ],
)
def test_any_origin(hosts: list[str], origins: list[str] | None, expected: list[str]) -> None:
    with with_delivery(ALLOWED_ORIGINS=origins), override_settings(ALLOWED_HOSTS=hosts):
        assert ids(deployment.check_site()) == expected


def test_a_server_that_takes_smaller_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UVICORN_WS_MAX_SIZE", "1000000")
    assert ids(deployment.check_server()) == ["E105"]


def test_daphne(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "django_settings", SimpleNamespace(INSTALLED_APPS=["daphne"]))
    assert ids(deployment.check_server()) == ["E106"]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("redis://localhost", ["E107"]),
        ({"address": "redis://localhost"}, ["E107"]),
        ({"address": "redis://localhost", "socket_timeout": 5}, ["E107"]),
        ({"address": "redis://localhost", "socket_timeout": 30}, []),
    ],
)
def test_the_core_layer_without_a_timeout(host: Any, expected: list[str]) -> None:
    with layer(deployment.CORE_LAYER, host):
        assert ids(deployment.check_layer()) == expected
    with layer(PUBSUB, host):
        assert deployment.check_layer() == []


@pytest.mark.parametrize(("accepts", "expected"), [(("json",), []), (("json", "pickle"), ["W007"])])
def test_celery_that_accepts_more_than_json(
    monkeypatch: pytest.MonkeyPatch, accepts: tuple[str, ...], expected: list[str]
) -> None:
    monkeypatch.setattr(dispatch, "site_app", lambda: SimpleNamespace(accepts=accepts))
    assert ids(deployment.check_celery()) == expected


def test_the_command_fails_on_them_and_the_reference_site_passes(tmp_path: Any) -> None:
    good = manage("check", "--deploy", "--tag=delivery", DELIVERY_VAR=str(tmp_path))
    assert good.returncode == 0, good.stderr
    bad = manage(
        "check", "--deploy", DELIVERY_VAR=str(tmp_path), REDIS_URL="redis://198.51.100.7", DEBUG="1", ALLOWED_HOSTS="*"
    )
    assert bad.returncode == 1
    for found in ("E101", "E102", "E103", "E104"):
        assert f"delivery.{found}" in bad.stderr


def test_everything_but_w007_is_an_error() -> None:
    with with_delivery(REDIS_URL="redis://far.example", ALLOWED_ORIGINS=["*"]), override_settings(DEBUG=True):
        assert all(message.level == ERROR for message in [*deployment.check_redis(), *deployment.check_site()])
