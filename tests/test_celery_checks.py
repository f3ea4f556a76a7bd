"""The system checks that look at the site's Celery app and at what runs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from celery import current_app
from celery.app.routes import Router, prepare
from django.core import checks as django_checks
from django.core.checks.registry import registry as check_registry

from delivery import dispatch
from delivery.buffer import registry
from delivery.checks import celery
from delivery.errors import BufferUnavailable


def ids(messages: list[django_checks.CheckMessage]) -> list[str]:
    return [str(message.id) for message in messages]


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that has the site's app look otherwise."""

    def change(**members: Any) -> None:
        other = dataclasses.replace(dispatch.site_app(), **members)
        monkeypatch.setattr(dispatch, "site_app", lambda: other)

    return change


def _forget_queues() -> None:
    """Have Celery read its options again: it keeps the queues that it made of them, for every later test too."""
    for name in ("queues", "router", "_rtable"):
        current_app.amqp.__dict__.pop(name, None)


@pytest.fixture
def option() -> Iterator[Any]:
    """Return a function that changes an option of the reference site's app until the test ends."""
    before: dict[str, Any] = {}

    def change(name: str, value: Any) -> None:
        before[name] = current_app.conf[name]
        current_app.conf[name] = value
        _forget_queues()

    yield change
    for name, value in before.items():
        current_app.conf[name] = value
    _forget_queues()


def test_the_reference_site_is_fine():
    assert ids(celery.check_app()) == []


def test_a_site_without_a_celery_app_is_told():
    code = "from delivery import dispatch; print(dispatch.site_app().configured)"
    settings = "from django.conf import settings; settings.configure(); "
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", settings + code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_no_app(app):
    app(configured=False, eager=True)
    assert ids(celery.check_app()) == ["delivery.W001"]


def test_eager_mode(option):
    option("task_always_eager", True)
    assert ids(celery.check_app()) == ["delivery.W002"]


def test_json_must_be_accepted(app):  # before Celery 5.7, CELERY_ACCEPT_CONTENT hides what is set later
    app(accepts=("pickle",))
    assert ids(celery.check_app()) == ["delivery.E006"]


def test_queues_that_the_app_does_not_declare(option):
    option("task_create_missing_queues", False)
    assert set(ids(celery.check_app())) == {"delivery.E007"}


def test_no_live_worker(monkeypatch):
    monkeypatch.setattr(registry, "alive_workers", frozenset)
    (message,) = celery.check_workers()
    assert message.id == "delivery.W003"
    assert "'delivery'" in message.msg


def test_a_live_worker(monkeypatch):
    monkeypatch.setattr(registry, "alive_workers", lambda: frozenset({"worker@host"}))
    assert ids(celery.check_workers()) == []


def test_redis_does_not_answer(monkeypatch):
    def away() -> frozenset[str]:
        raise BufferUnavailable("Redis: ConnectionError")

    monkeypatch.setattr(registry, "alive_workers", away)
    assert ids(celery.check_workers()) == ["delivery.W004"]


def test_what_runs_is_looked_at_only_on_demand():
    """`manage.py check` and `migrate` are run where nothing else runs yet."""
    assert celery.check_workers not in check_registry.get_checks()
    assert celery.check_workers in check_registry.get_checks(include_deployment_checks=True)


def test_our_queue_is_where_the_site_routes_our_tasks(monkeypatch, settings):
    settings.DELIVERY = {key: value for key, value in settings.DELIVERY.items() if key not in ("QUEUE", "SEAL_QUEUE")}
    assert dispatch.queue_of(dispatch.STORE) == current_app.conf.task_default_queue
    routes = prepare([{"delivery.*": {"queue": "elsewhere"}}])
    monkeypatch.setattr(current_app.amqp, "router", Router(routes, current_app.amqp.queues, True, app=current_app))
    assert dispatch.queue_of(dispatch.STORE) == "elsewhere"
    assert "elsewhere" not in current_app.amqp.queues
