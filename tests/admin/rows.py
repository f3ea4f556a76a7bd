"""Rows as `delivery.transfers` leaves them, made directly: these tests are about what an operator sees of them."""

from __future__ import annotations

import uuid
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.utils import timezone

from delivery.models import Direction, Payload, Transfer

MIB = 1024 * 1024
RTL_OVERRIDE = "\u202e"
HOSTILE = f'<script>alert("x")</script>{RTL_OVERRIDE}fdp.exe\r\nSet-Cookie: a=b'


def make_user(name: str, *permissions: str, staff: bool = False) -> Any:
    user = get_user_model().objects.create_user(name, is_staff=staff)
    for codename in permissions:
        user.user_permissions.add(Permission.objects.get(content_type__app_label="delivery", codename=codename))
    return user


def make_payload(**fields: Any) -> Payload:
    return Payload.objects.create(**{"name": "scan.tif", "size": 4 * MIB, **fields})


def make_transfer(payload: Payload, user: Any, **fields: Any) -> Transfer:
    defaults = {"direction": Direction.UPLOAD, "key": uuid.uuid4(), "progressed_at": timezone.now()}
    return Transfer.objects.create(payload=payload, user=user, **{**defaults, **fields})
