"""The admin as an operator uses it: Django's test client on a real database, the real library behind the actions."""

from __future__ import annotations

import pytest
from django.test import Client

from tests.admin.rows import make_user


@pytest.fixture(autouse=True)
def _no_other_process(settings, tmp_path):
    """Control events stay in this process, and files in a directory of the test."""
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    settings.STORAGES = {
        **settings.STORAGES,
        "delivery": {
            "BACKEND": "django.core.files.storage.FileSystemStorage",
            "OPTIONS": {"location": tmp_path / "payloads"},
        },
    }


@pytest.fixture
def alice(db):
    return make_user("alice")


@pytest.fixture
def bob(db):
    return make_user("bob")


@pytest.fixture
def log_in(db):
    """Log in a staff user with just these permissions."""

    def log_in(*permissions: str) -> Client:
        client = Client()
        client.force_login(make_user("operator", *permissions, staff=True))
        return client

    return log_in
