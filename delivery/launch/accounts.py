"""The demo's accounts: created if missing, with random passwords that are kept in one private file."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group

from delivery.launch.state import write_private


@dataclass(frozen=True)
class DemoAccounts:
    """The accounts to create: none without `DELIVERY_DEMO` in the site's settings."""

    users: tuple[str, ...] = ()
    superuser: str | None = None
    groups: Mapping[str, tuple[str, ...]] | None = None

    @classmethod
    def of_site(cls) -> DemoAccounts:
        """Read `DELIVERY_DEMO = {"users": [...], "superuser": ..., "groups": {name: [user, ...]}}`."""
        given: dict[str, Any] = getattr(settings, "DELIVERY_DEMO", None) or {}
        groups = {name: tuple(members) for name, members in given.get("groups", {}).items()}
        return cls(tuple(given.get("users", ())), given.get("superuser"), groups)

    def ensure(self, passwords: Path) -> None:
        """Make the accounts that are missing and write their passwords down; those that exist stay as they are."""
        known = read_passwords(passwords)
        manager = get_user_model()._default_manager
        for name in (*self.users, *filter(None, [self.superuser])):
            if manager.filter(**{get_user_model().USERNAME_FIELD: name}).exists():
                continue
            known.setdefault(name, secrets.token_urlsafe(12))
            # The password is written before the row: an account with an unknown password is useless.
            write_private(passwords, "".join(f"{user} {password}\n" for user, password in known.items()))
            self._create(name, known[name])

    def _create(self, name: str, password: str) -> None:
        manager: Any = get_user_model()._default_manager
        create = manager.create_superuser if name == self.superuser else manager.create_user
        user = create(name, f"{name}@example.org", password)
        for group, members in (self.groups or {}).items():
            if name in members:
                user.groups.add(Group.objects.get_or_create(name=group)[0])


def read_passwords(path: Path) -> dict[str, str]:
    """Return the passwords by user; empty where there is no such file."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return {}
    pairs = (line.split(maxsplit=1) for line in lines)
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
