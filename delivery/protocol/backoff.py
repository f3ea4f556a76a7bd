"""What a client does after its connection closed: stop, wait how long, with which chunk size (PROTOCOL section 6).

Pure decisions: random numbers come in as arguments, and the caller sleeps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from delivery.protocol.codes import Reaction, reaction_to
from delivery.protocol.frames import CHUNK_SIZE_MIN

WAIT_WITHOUT_ADVICE_SECONDS = 5.0
LOSSES_THAT_COUNT_AS_TOO_BIG = 3
CALM_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Closed:
    """How a connection ended, as its client saw it.

    `code` is the close code, 1006 where the TCP connection was lost. `retry_after` (seconds) is the server's advice
    from `going_away`. `unacked`: chunks were sent that no ack covers. `welcomed_seconds`: how long the connection
    lived after its welcome, 0 where there was none. `chunk_size`: the largest chunk that the client could send, in
    bytes, None where it did not come to that.
    """

    code: int
    retry_after: float | None = None
    unacked: bool = False
    welcomed_seconds: float = 0.0
    chunk_size: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do next: give up (`stop`), or reconnect after `wait` seconds with chunks of at most `chunk_size` bytes."""

    stop: bool
    wait: float
    chunk_size: int
    shrunk: bool = False


@dataclass(slots=True)
class Recovery:
    """The memory that a client keeps from connection to connection.

    `initial` and `maximum` (seconds) bound the backoff and follow the server's `welcome.retry`; `chunk_size` (bytes) is
    the ceiling learnt so far for this URL.
    """

    chunk_size: int
    initial: float = 0.5
    maximum: float = 10.0
    attempt: int = 0
    losses: int = field(default=0, init=False)

    def progressed(self) -> None:
        """Note that an ack moved: the backoff starts again from its first step."""
        self.attempt = 0
        self.losses = 0

    def closed(self, how: Closed, random: float) -> Plan:
        """Return what to do after a close. `random` is uniform in 0..1."""
        if how.welcomed_seconds >= CALM_SECONDS:
            self.attempt = 0
        sent = min(self.chunk_size, how.chunk_size or self.chunk_size)
        reaction = self._reaction(how, sent)
        if reaction is Reaction.STOP:
            return Plan(stop=True, wait=0.0, chunk_size=self.chunk_size)
        if reaction is Reaction.SHRINK:
            return self._shrink(sent, random)
        return Plan(stop=False, wait=self._wait(reaction, how.retry_after, random), chunk_size=self.chunk_size)

    def refused(self, random: float) -> Plan:
        """Return what to do after a connection that was never established."""
        return Plan(stop=False, wait=self._backoff(random), chunk_size=self.chunk_size)

    def _reaction(self, how: Closed, sent: int) -> Reaction:
        if how.code != 1006:
            self.losses = 0
            return reaction_to(how.code)
        self.losses = self.losses + 1 if how.unacked else 0
        if self.losses < LOSSES_THAT_COUNT_AS_TOO_BIG:
            return Reaction.BACKOFF
        self.losses = 0
        # A proxy on the way may cut what is too big for it without a word. At the floor nothing smaller can be
        # tried, and the losses are then taken for what they seem to be: a bad network.
        return Reaction.SHRINK if sent > CHUNK_SIZE_MIN else Reaction.BACKOFF

    def _shrink(self, sent: int, random: float) -> Plan:
        if sent <= CHUNK_SIZE_MIN:
            return Plan(stop=True, wait=0.0, chunk_size=sent)
        self.chunk_size = max(CHUNK_SIZE_MIN, sent // 2)
        return Plan(stop=False, wait=self._backoff(random), chunk_size=self.chunk_size, shrunk=True)

    def _wait(self, reaction: Reaction, retry_after: float | None, random: float) -> float:
        if reaction is Reaction.WAIT:
            self.attempt += 1
            return WAIT_WITHOUT_ADVICE_SECONDS if retry_after is None else retry_after
        if reaction is Reaction.RETURN and retry_after is not None:
            # Advice holds for the first attempt after this close: should that be refused, it is backed off from.
            self.attempt += 1
            return retry_after
        return self._backoff(random)

    def _backoff(self, random: float) -> float:
        """Full jitter: attempt n waits a uniform time in 0 .. min(maximum, initial * 2^n)."""
        wait = random * min(self.maximum, self.initial * 2.0 ** min(self.attempt, 60))
        self.attempt += 1
        return wait
