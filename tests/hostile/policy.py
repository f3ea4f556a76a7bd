"""The policy of the server under attack: whoever is in a Django group of these names has its quota."""

from __future__ import annotations

from typing import Any

from delivery.policy import Quota
from project.policy import DemoPolicy

BYTES = Quota(stored=1_000_000)
UPLOADS = Quota(live=5)
OFFERS = Quota(offers_per_minute=20)
CONNECTIONS = Quota(connections=3)
QUOTAS = {"tight-bytes": BYTES, "tight-uploads": UPLOADS, "tight-offers": OFFERS, "tight-connections": CONNECTIONS}
BARRED = "barred"  # who joins it may connect no more
BROKEN = "broken"  # over whom the policy fails


class TightPolicy(DemoPolicy):
    def quota(self, user: Any) -> Quota:
        names = user.groups.values_list("name", flat=True)
        return next((QUOTAS[name] for name in names if name in QUOTAS), Quota())

    def may_connect(self, user: Any) -> bool:
        names = set(user.groups.values_list("name", flat=True))
        if BROKEN in names:
            raise LookupError("a fault in the site's policy")
        return super().may_connect(user) and BARRED not in names
