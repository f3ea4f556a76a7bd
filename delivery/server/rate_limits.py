"""Rate limits of a user: offers and connections, counted in this process by monotonic time."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

WINDOW_SECONDS = 60.0


class OfferRates:
    """Offers of each user in the current minute."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._offers: Counter[Any] = Counter()

    def count(self, user: Any, limit: int) -> float | None:
        """Count one offer; return None, or how many seconds to wait where `limit` a minute is exceeded."""
        now = time.monotonic()
        if now - self._since >= WINDOW_SECONDS:
            self._since = now
            self._offers.clear()
        if self._offers[user] >= limit:
            return self._since + WINDOW_SECONDS - now
        self._offers[user] += 1
        return None


class ConnectionCounts:
    """How many connections each user has in this process."""

    def __init__(self) -> None:
        self._counts: Counter[Any] = Counter()

    def enter(self, user: Any) -> int:
        """Count one more; return how many they are now."""
        self._counts[user] += 1
        return self._counts[user]

    def leave(self, user: Any) -> None:
        """Count one less."""
        self._counts[user] -= 1
        if self._counts[user] <= 0:
            del self._counts[user]
