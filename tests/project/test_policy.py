"""Whom the reference site lets send to whom."""

from __future__ import annotations

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group

from project.policy import DemoPolicy

pytestmark = pytest.mark.django_db


def test_everybody_may_send_to_a_group_that_has_members() -> None:
    users = get_user_model().objects
    alice, bob = users.create_user("alice"), users.create_user("bob")
    gone = users.create_user("gone", is_active=False)
    ops, left = Group.objects.create(name="ops"), Group.objects.create(name="left")
    bob.groups.add(ops)
    gone.groups.add(left)
    rules = DemoPolicy()
    assert rules.may_send(alice, [])
    assert rules.may_send(alice, [f"user:{bob.pk}", "group:ops"])
    assert not rules.may_send(alice, ["group:ops", "group:left"])
    assert not rules.may_send(alice, ["group:opps"])
