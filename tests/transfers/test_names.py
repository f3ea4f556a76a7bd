"""Addresses as they come from outside, and whom they mean once they are kept."""

from __future__ import annotations

import uuid

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session

from delivery import deliver, policy
from delivery.models import Address, Payload
from delivery.policy import DefaultPolicy, key_of, user_named
from delivery.transfers import recipients
from delivery.transfers.recipients import Recipients

pytestmark = pytest.mark.django_db
KEY = uuid.UUID("550e8400-e29b-41d4-a716-446655440000")


@pytest.mark.parametrize(
    "address", ["user:alice\0", "user:\0", "group:o\0ps", "user:" + "9" * 40, "group:" + "x" * 201]
)
def test_what_can_be_no_address_names_nobody(address: str) -> None:
    User.objects.create_user("alice")
    assert recipients.canonical_addresses(DefaultPolicy(), ["user:alice", address]) is None


@pytest.mark.parametrize("gone", ["inactive", "deleted", "never there"])
def test_who_is_named_like_a_key_gets_nothing_of_that_users(gone: str) -> None:
    meant = User.objects.create_user("meant")
    key = meant.pk if gone != "never there" else 2**31 - 1
    User.objects.create_user(str(key))
    kept = deliver(b"kept", to=meant)
    Address.objects.filter(payload=kept).update(address=f"user:{key}")
    if gone == "deleted":
        meant.delete()
    elif gone == "inactive":
        User.objects.filter(pk=key).update(is_active=False)
    assert recipients.canonical_addresses(DefaultPolicy(), [f"user:{key}"]) is None
    assert Recipients().of([f"user:{key}"]) == []
    assert user_named(str(key), User.objects.filter(is_active=True)) is None


def test_a_name_is_resolved_at_the_offer_and_its_key_is_kept() -> None:
    alice = User.objects.create_user("alice")
    (address,) = recipients.canonical_addresses(DefaultPolicy(), ["user:alice"]) or []
    assert address == f"user:{alice.pk}"
    User.objects.filter(pk=alice.pk).update(username="renamed")
    User.objects.create_user("alice")
    assert Recipients().of([address]) == [alice.pk]
    assert Recipients().of(["user:alice"]) == []  # a row that no version wrote


@pytest.mark.parametrize("name", ["02", "+2", "2_0", " 2", "2 ", "２", "٢", "2.0", "-0", "alice", "", str(KEY)])
def test_a_number_has_one_spelling_and_all_others_are_names(name: str) -> None:
    assert key_of(name, User) is None
    if name:
        someone = User.objects.create(username=name)
        assert user_named(name, User.objects.all()) == someone


def test_case_counts_in_names() -> None:
    User.objects.create_user("Alice")
    assert user_named("alice", User.objects.all()) is None


@pytest.mark.parametrize("name", [str(KEY), str(KEY).upper(), KEY.hex, f"{{{KEY}}}"])
def test_a_uuid_is_a_key_however_it_is_written(name: str) -> None:
    assert key_of(name, Payload) == KEY


def test_other_models_keys() -> None:
    assert key_of("alice", Payload) is None
    assert key_of("anything", Session) == "anything"  # text: whatever is written may be a key


def test_members_who_are_not_active_get_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    alice = User.objects.create_user("alice")
    User.objects.create_user("bob", is_active=False)
    monkeypatch.setattr(policy, "current", DefaultPolicy)
    monkeypatch.setattr(DefaultPolicy, "group_members", lambda self, name: User.objects.all())
    assert Recipients().of(["group:ops"]) == [alice.pk]
