"""Addresses as they come from outside."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User

from delivery.policy import DefaultPolicy
from delivery.transfers import names


@pytest.mark.django_db
@pytest.mark.parametrize(
    "address", ["user:alice\0", "user:\0", "group:o\0ps", "user:" + "9" * 40, "group:" + "x" * 201]
)
def test_what_can_be_no_address_names_nobody(address: str) -> None:
    User.objects.create_user("alice")
    assert names.canonical(DefaultPolicy(), ["user:alice", address]) is None
