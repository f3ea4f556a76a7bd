"""Decides when to ping, and when the peer has been silent for too long (PROTOCOL section 5).

All times are monotonic seconds.
"""

from __future__ import annotations

from delivery.protocol.messages import Ping

SILENT_HEARTBEATS = 2.5


class Heartbeat:
    """The pulse of one connection. `interval` is one heartbeat in seconds; pings are sent only while `pings` is set.

    `heard`: when anything last came, bytes of an incomplete message included. `said`: when a message was last sent.
    A `server` pings after a heartbeat of either silence, a client only after one of its own.
    """

    def __init__(self, interval: float, *, now: float, server: bool) -> None:
        self.interval = interval
        self.heard = now
        self.said = now
        self.pings = False
        self._server = server
        self._pinged = now
        self._id = 0

    def silent(self, now: float) -> bool:
        """Return whether nothing at all came for 2.5 heartbeats."""
        return now >= self._silent_at()

    def ping(self, now: float) -> Ping | None:
        """Return the ping that is due now, None where none is."""
        if not self.pings or now < self._ping_at():
            return None
        self._pinged = now
        return self.next_ping()

    def next_ping(self) -> Ping:
        """Return a ping with an id of its own, whether or not one is due."""
        self._id += 1
        return Ping(id=self._id)

    def wake_at(self) -> float:
        """Return the time at which one of the two has to be asked again."""
        return min(self._silent_at(), self._ping_at()) if self.pings else self._silent_at()

    def _silent_at(self) -> float:
        return self.heard + SILENT_HEARTBEATS * self.interval

    def _ping_at(self) -> float:
        quiet_since = min(self.heard, self.said) if self._server else self.said
        return max(quiet_since, self._pinged) + self.interval
