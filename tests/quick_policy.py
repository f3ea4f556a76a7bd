"""The policy of `quick_settings`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from project.policy import DemoPolicy

MUTED_GROUP = "muted"


class MutedPolicy(DemoPolicy):
    """The demo's policy, but for the members of one group, who may send to nobody."""

    def may_send(self, user: Any, addresses: Sequence[str]) -> bool:
        return not addresses or not user.groups.filter(name=MUTED_GROUP).exists()
