"""The demo's policy: unlike the default, it lets users send to each other and to groups."""

from collections.abc import Iterable, Sequence
from typing import Any

from django.contrib.auth import get_user_model

from delivery.policy import DefaultPolicy


class DemoPolicy(DefaultPolicy):
    """Everybody may send to everybody; a group is Django's group of that name, open to its members."""

    def may_send(self, user: Any, addresses: Sequence[str]) -> bool:
        return True

    def group_members(self, name: str) -> Iterable[Any]:
        return get_user_model()._default_manager.filter(groups__name=name, is_active=True)

    def may_join(self, user: Any, name: str) -> bool:
        return bool(user.groups.filter(name=name).exists())
