"""The demo's accounts and the file with their passwords."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.contrib.auth import authenticate, get_user_model
from pytest_django.fixtures import Settings

from delivery.launch.accounts import DemoAccounts, read_passwords

pytestmark = pytest.mark.django_db
DEMO = DemoAccounts(users=("alice", "bob"), superuser="admin", groups={"ops": ("alice",)})


def test_missing_accounts_are_made_with_the_passwords_of_the_file(tmp_path: Path) -> None:
    DEMO.ensure(tmp_path / "passwords")
    passwords = read_passwords(tmp_path / "passwords")
    assert [*passwords] == ["alice", "bob", "admin"]
    assert len(set(passwords.values())) == 3
    assert all(authenticate(username=name, password=password) for name, password in passwords.items())


def test_superuser_and_groups(tmp_path: Path) -> None:
    DEMO.ensure(tmp_path / "passwords")
    users = {user.username: user for user in get_user_model().objects.all()}
    assert [name for name, user in users.items() if user.is_superuser] == ["admin"]
    assert [name for name, user in users.items() if user.groups.filter(name="ops").exists()] == ["alice"]


def test_second_start_changes_nothing(tmp_path: Path) -> None:
    DEMO.ensure(tmp_path / "passwords")
    before = read_passwords(tmp_path / "passwords")
    DEMO.ensure(tmp_path / "passwords")
    assert read_passwords(tmp_path / "passwords") == before


def test_account_that_is_not_ours_keeps_its_password(tmp_path: Path) -> None:
    get_user_model().objects.create_user("alice", password="her own")
    DEMO.ensure(tmp_path / "passwords")
    assert authenticate(username="alice", password="her own")
    assert "alice" not in read_passwords(tmp_path / "passwords")


def test_account_that_was_lost_with_the_database_comes_back_with_its_password(tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text("bob kept\n")
    DEMO.ensure(tmp_path / "passwords")
    assert authenticate(username="bob", password="kept")


def test_site_without_a_demo_gets_no_accounts(tmp_path: Path, settings: Settings) -> None:
    del settings.DELIVERY_DEMO
    DemoAccounts.of_site().ensure(tmp_path / "passwords")
    assert not get_user_model().objects.exists()
    assert not (tmp_path / "passwords").exists()
