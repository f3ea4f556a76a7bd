"""Who does what in a run: its clients, how fast their networks are and where these are cut, what is shut down."""

from __future__ import annotations

from dataclasses import dataclass

from demo.account import Account
from demo.drains import Drains
from demo.leg import Journey, Leg
from rig.proxy import DOWN, UP, Direction
from rig.stack import Stack

SENDER = "alice"
SENDER_CUTS = (0.08, 0.2)  # before the shutdowns: what was sent is a window ahead of what is stored
RECIPIENTS = {"bob": (0.3, 0.7), "carol": (0.4, 0.8)}
#: What the network takes for a payload of up to 1 GiB: long enough for every interruption to fall into the transfer.
UPLOAD_SECONDS, DELIVERY_SECONDS = 15.0, 10.0
SLOWEST_RATE, FASTEST_RATE = 1_048_576.0, 67_108_864.0
#: A smaller upload is over before a worker has stored a part of it: it is cut, and nothing is shut down.
DRAINED_BYTES = 2_097_152


@dataclass(frozen=True)
class Plan:
    """The legs of a run. `drains` is None where the payload is too small for any."""

    sender: Leg
    recipients: tuple[Leg, ...]
    drains: Drains | None

    @property
    def legs(self) -> tuple[Leg, ...]:
        return (self.sender, *self.recipients)


def plan(size: int, stack: Stack, account: Account) -> Plan:
    """Return the plan for a payload of `size` bytes."""
    drained = size >= DRAINED_BYTES

    def rate(seconds: float, *, slowest: float = SLOWEST_RATE) -> float:
        return min(max(size / seconds, slowest), FASTEST_RATE)

    def leg(name: str, direction: Direction, cuts: tuple[float, ...], speed: float) -> Leg:
        return Leg(Journey(name, direction, size, speed, cuts), stack.port, account)

    # However small, what is to be shut down in the middle needs its time.
    upload = rate(UPLOAD_SECONDS, slowest=0.0 if drained else SLOWEST_RATE)
    sender = leg(SENDER, UP, SENDER_CUTS, upload)
    recipients = [leg(name, DOWN, cuts, rate(DELIVERY_SECONDS)) for name, cuts in RECIPIENTS.items()]
    return Plan(sender, tuple(recipients), Drains(stack, sender, account) if drained else None)
