"""What the parts find in their environment."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from delivery.launch import environment


@pytest.fixture
def glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))


@pytest.mark.usefixtures("glibc")
def test_malloc_settings_are_added() -> None:
    assert environment.with_malloc({"A": "1"}) == {"A": "1", **environment.MALLOC}


@pytest.mark.usefixtures("glibc")
def test_malloc_settings_of_the_operator_stand() -> None:
    assert environment.with_malloc({"MALLOC_TOP_PAD_": "0"})["MALLOC_TOP_PAD_"] == "0"


def test_nothing_is_added_outside_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert environment.with_malloc({"A": "1"}) == {"A": "1"}


def test_parts_get_the_directory_and_the_embedded_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere")
    assert environment.part_environment(var=Path("/v"), redis_url=None)["REDIS_URL"] == "redis://elsewhere"
    own = environment.part_environment(var=Path("/v"), redis_url="unix:///v/valkey.sock")
    assert own["REDIS_URL"] == "unix:///v/valkey.sock"
    assert own["DELIVERY_VAR"] == "/v"


def test_site_is_importable_for_celery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/srv/site/manage.py", "delivery_worker"])
    assert environment.python_path({})["PYTHONPATH"] == "/srv/site"
    assert environment.python_path({"PYTHONPATH": "/x"})["PYTHONPATH"] == f"/srv/site{os.pathsep}/x"


def test_django_as_a_module_does_not_put_its_own_folders_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m django delivery_worker`: beside its script lies `django/http`, which would hide the standard `http`."""
    monkeypatch.setattr("sys.argv", ["/site-packages/django/__main__.py", "delivery_worker"])
    assert environment.python_path({})["PYTHONPATH"] == os.getcwd()
