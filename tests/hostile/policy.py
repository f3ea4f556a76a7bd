"""The policy of the server under attack: whoever is in a Django group of these names has its quota."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from delivery.policy import Quota
from project.policy import DemoPolicy

BYTES = Quota(stored=1_000_000)
UPLOADS = Quota(live=5)
OFFERS = Quota(offers_per_minute=20)
CONNECTIONS = Quota(connections=3)
TIGHT_SIZE, LARGEST = "tight-size", 300_000  # bytes of a payload of theirs
TINY_SIZE, TINY = "tiny-size", 1_000
BROKEN_GROUP = "group-that-fails"  # over which the policy fails
MUTED = "may-not-send"
RAISES, HANGS, HANG_SECONDS = "policy-raises", "policy-hangs", 20.0
QUOTAS = {"tight-bytes": BYTES, "tight-uploads": UPLOADS, "tight-offers": OFFERS, "tight-connections": CONNECTIONS}
BARRED = "barred"  # who joins it may connect no more
BROKEN = "broken"  # over whom the policy fails


class TightPolicy(DemoPolicy):
    def quota(self, user: Any) -> Quota:
        names = user.groups.values_list("name", flat=True)
        return next((QUOTAS[name] for name in names if name in QUOTAS), Quota())

    def max_payload(self, user: Any) -> int:
        names = set(user.groups.values_list("name", flat=True))
        if TINY_SIZE in names:
            return TINY
        return LARGEST if TIGHT_SIZE in names else super().max_payload(user)

    def may_send(self, user: Any, addresses: Sequence[str]) -> bool:
        names = set(user.groups.values_list("name", flat=True))
        if RAISES in names:
            raise LookupError("a fault in the site's policy")
        if HANGS in names:
            time.sleep(HANG_SECONDS)
        return MUTED not in names

    def may_join(self, user: Any, name: str) -> bool:
        if name == BROKEN_GROUP:
            raise LookupError("a fault in the site's policy")
        return super().may_join(user, name)

    def group_members(self, name: str) -> Iterable[Any]:
        if name == BROKEN_GROUP:
            raise LookupError("a fault in the site's policy")
        return super().group_members(name)

    def may_connect(self, user: Any) -> bool:
        names = set(user.groups.values_list("name", flat=True))
        if BROKEN in names:
            raise LookupError("a fault in the site's policy")
        return super().may_connect(user) and BARRED not in names
