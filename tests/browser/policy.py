"""The demo's policy, and a small quota for users whose name says so."""

from dataclasses import replace
from typing import Any

from delivery.policy import Quota
from project.policy import DemoPolicy

SMALL_QUOTA_BYTES = 1_000_000


class SmallQuotaPolicy(DemoPolicy):
    def quota(self, user: Any) -> Quota:
        found = super().quota(user)
        return replace(found, stored=SMALL_QUOTA_BYTES) if user.username.startswith("small-") else found
