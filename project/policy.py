"""The demo's policy: unlike the default, it lets users send to each other and to groups that have members."""

from collections.abc import Sequence
from typing import Any

from django.contrib.auth import get_user_model
from django.db.models import QuerySet

from delivery.policy import GROUP, DefaultPolicy


class DemoPolicy(DefaultPolicy):
    """Everybody may send to everybody; a group is Django's group of that name, open to its members.

    A group that nobody is in is refused, like a user whom nobody knows: most often its name is mistyped.
    """

    def may_send(self, user: Any, addresses: Sequence[str]) -> bool:
        groups = [address.removeprefix(GROUP) for address in addresses if address.startswith(GROUP)]
        return all(self.group_members(name).exists() for name in groups)

    def group_members(self, name: str) -> QuerySet[Any]:
        return get_user_model()._default_manager.filter(groups__name=name, is_active=True)

    def may_join(self, user: Any, name: str) -> bool:
        return bool(user.groups.filter(name=name).exists())
