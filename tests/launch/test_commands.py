"""The commands of the single parts."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from pytest_django.fixtures import Settings

from delivery.launch import environment
from tests.launch.live import manage


class Replaced(Exception):  # not an error: what execve would have become
    """The process would be another program now."""


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the arguments of `os.execve` in place of running it."""
    arguments: list[str] = []

    def execve(path: str, argv: list[str], variables: dict[str, str]) -> None:
        arguments.extend(argv)
        arguments.extend(name for name in environment.with_malloc({}) if name not in variables)
        raise Replaced

    monkeypatch.setattr(os, "execve", execve)
    return arguments


def run(*arguments: str, **options: object) -> None:
    with pytest.raises(Replaced):
        call_command(*arguments, **options)


def test_worker_becomes_celery_on_all_queues_it_is_needed_for(executed: list[str]) -> None:
    run("delivery_worker", app="project")
    assert executed[:6] == [sys.executable, "-m", "celery", "--quiet", "-A", "project"]
    assert executed[6:] == [
        "worker",
        "--queues=delivery,delivery-seal,celery",
        "--concurrency=2",
        "--pool=threads",
        "--hostname=worker@%h",
        "--loglevel=INFO",
        "--prefetch-multiplier=1",
        "--without-gossip",
        "--without-mingle",
    ]


def test_worker_takes_the_default_queue_alone_where_delivery_has_none(executed: list[str], settings: Settings) -> None:
    settings.DELIVERY = {**settings.DELIVERY, "QUEUE": None, "SEAL_QUEUE": None}
    run("delivery_worker", app="project")
    assert "--queues=celery" in executed


def test_worker_takes_what_it_is_given(executed: list[str]) -> None:
    run("delivery_worker", "--queues=a,b", "--pool=prefork", "--concurrency=7", "--name=w3", app="project")
    assert {"--queues=a,b", "--pool=prefork", "--concurrency=7", "--hostname=w3@%h"} <= {*executed}


def test_beat_keeps_nothing_on_disk(executed: list[str]) -> None:
    run("delivery_beat", app="project")
    assert executed[6:] == ["beat", "--scheduler=celery.beat:Scheduler", "--loglevel=INFO", "--pidfile="]


def test_unknown_pool_is_refused() -> None:
    with pytest.raises(CommandError, match="invalid choice"):
        call_command("delivery_worker", "--pool=gevent")


@pytest.mark.django_db
def test_token_is_the_last_word_of_the_output() -> None:
    get_user_model().objects.create_user("alice")
    output = io.StringIO()
    call_command("delivery_token", "alice", "--expires=60", stdout=output)
    assert len(output.getvalue().split()[-1]) > 20


@pytest.mark.django_db
def test_token_for_nobody_is_refused() -> None:
    get_user_model().objects.create_user("gone", is_active=False)
    with pytest.raises(CommandError, match="no user 'dave'"):
        call_command("delivery_token", "dave")
    with pytest.raises(CommandError, match="not active"):
        call_command("delivery_token", "gone")
    with pytest.raises(CommandError, match="above 0"):
        call_command("delivery_token", "gone", "--expires=0")


def test_help_of_up_names_each_part() -> None:
    text = manage("up", "--help").stdout
    assert all(f"manage.py {part}" in text for part in ("delivery_web", "delivery_worker", "delivery_beat", "migrate"))


def test_zero_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="at least 1"):
        call_command("up", "--workers=0", f"--var={tmp_path}")
