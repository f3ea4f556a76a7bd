"""Who said something when: the server's pings, and a peer that has gone silent (PROTOCOL section 5).

All times are monotonic seconds.
"""

from __future__ import annotations

from delivery.protocol.messages import Ping

SILENT_HEARTBEATS = 2.5


class Heartbeat:
    """The pulse of one connection. `interval` is one heartbeat in seconds; pings are sent only while `pings` is set."""

    def __init__(self, interval: float, *, now: float) -> None:
        self.interval = interval
        self.heard = now
        self.said = now
        self.pings = False
        self._pinged = now
        self._id = 0

    def silent(self, now: float) -> bool:
        """Return whether nothing at all came for 2.5 heartbeats."""
        return now >= self._silent_at()

    def ping(self, now: float) -> Ping | None:
        """Return the ping that is due now: nothing was said, or nothing heard, for one heartbeat."""
        if not self.pings or now < self._ping_at():
            return None
        self._pinged = now
        self._id += 1
        return Ping(id=self._id)

    def wake_at(self) -> float:
        """Return the time at which one of the two has to be asked again."""
        return min(self._silent_at(), self._ping_at()) if self.pings else self._silent_at()

    def _silent_at(self) -> float:
        return self.heard + SILENT_HEARTBEATS * self.interval

    def _ping_at(self) -> float:
        return max(min(self.heard, self.said), self._pinged) + self.interval
