"""Detects chunks that a proxy swallowed (PROTOCOL section 5, "Swallowed messages").

Messages arrive in order. If a ping that was sent after a chunk is answered, and the receiver still does not count that
chunk, the chunk is lost. A second ping, one second later, gives a receiver of an older version time to report it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from delivery.protocol.sender import Sender

PROBE_AFTER_SECONDS = 5.0
CONFIRM_AFTER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Suspect:
    """A sender as it was when the first ping went out."""

    sender: Sender
    received: int
    answers: int

    @classmethod
    def of(cls, sender: Sender) -> Suspect:
        return cls(sender, sender.received, sender.answers)

    def unmoved(self) -> bool:
        """Return whether its receiver has counted no chunk and answered nothing since."""
        return self.sender.live and self == Suspect.of(self.sender)


class LossProbe:
    """The one probe of a connection: two pings at most are sent for the senders that were due at its start."""

    def __init__(self) -> None:
        self._suspects: list[Suspect] = []
        self._ping: int | None = None  # the id of the ping whose pong is awaited
        self._confirm_at: float | None = None  # when the second ping is due; None before the first pong

    def ping_due(self, senders: Iterable[Sender], now: float) -> bool:
        """Return whether a ping is to be sent now; then call `pinged`. `now`: monotonic seconds."""
        if self._ping is not None:
            return False
        if self._confirm_at is not None:
            if now < self._confirm_at:
                return False
            self._suspects = [one for one in self._suspects if one.unmoved()]
            if not self._suspects:
                self._confirm_at = None
        if not self._suspects:
            self._suspects = [Suspect.of(sender) for sender in senders if now >= _due_at(sender)]
        return bool(self._suspects)

    def pinged(self, ping: int) -> None:
        """Note the id of the ping that was sent."""
        self._ping = ping

    def on_pong(self, ping: int, now: float) -> bool:
        """Take a pong; return whether it proves that messages were swallowed."""
        if ping != self._ping:
            return False
        self._ping = None
        self._suspects = [one for one in self._suspects if one.unmoved()]
        if self._suspects and self._confirm_at is not None:
            return True
        self._confirm_at = now + CONFIRM_AFTER_SECONDS if self._suspects else None
        return False

    def wake_at(self, senders: Iterable[Sender]) -> float:
        """Return the time at which `ping_due` has to be asked again; infinity where a pong or a chunk comes first."""
        if self._ping is not None:
            return float("inf")
        if self._confirm_at is not None:
            return self._confirm_at
        return min((_due_at(sender) for sender in senders), default=float("inf"))


def _due_at(sender: Sender) -> float:
    since = sender.unreceived_since
    return float("inf") if since is None else since + PROBE_AFTER_SECONDS
