"""What a client does after its connection closed: stop, wait how long, with which chunk size (PROTOCOL section 6).

Pure decisions: random numbers come in as arguments, and the caller sleeps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from delivery.protocol.codes import Reaction, reaction_to
from delivery.protocol.frames import CHUNK_SIZE_MIN

WAIT_WITHOUT_ADVICE_SECONDS = 5.0
LOSSES = frozenset({1006, 1011})  # 1006 also where the client gave up on a silent server
LOSSES_THAT_HALVE = 3
CLOSES_THAT_DO_NOT_COUNT = frozenset({1001, 1012, 1013, 4429})  # nor do they end a series of losses
CALM_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Closed:
    """How a connection ended, as its client saw it.

    `code` is the close code, 1006 where the TCP connection was lost or the client gave a silent server up.
    `retry_after` (seconds) is the server's advice from `going_away`. `stuck`: chunks were sent or a delivery was
    accepted, and neither `seq` nor `received` of any transfer moved. `welcomed_seconds`: how long the connection lived
    after its welcome, 0 where there was none. `chunk_size`: the largest chunk that the client could send, in bytes, None
    where it did not come to that.
    """

    code: int
    retry_after: float | None = None
    stuck: bool = False
    welcomed_seconds: float = 0.0
    chunk_size: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do next: give up (`stop`), or reconnect after `wait` seconds with chunks of at most `chunk_size` bytes.

    `shrunk`: the server refused larger ones. The size is to be remembered for this URL.
    """

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
    _guessed: bool = field(default=False, init=False)  # halved after losses, and no chunk of this size was acked yet

    def progressed(self, chunk_bytes: int = 0) -> int | None:
        """Note that an ack moved: the backoff starts again from its first step.

        `chunk_bytes`: the length of an acked chunk. Returns the chunk size that this proves to be right after losses,
        which is to be remembered for this URL; None mostly.
        """
        self.attempt = 0
        self.losses = 0
        if not self._guessed or chunk_bytes < self.chunk_size:
            return None
        self._guessed = False
        return self.chunk_size

    def closed(self, how: Closed, random: float) -> Plan:
        """Return what to do after a close. `random` is uniform in 0..1."""
        if how.welcomed_seconds >= CALM_SECONDS:
            self.attempt = 0
        sent = min(self.chunk_size, how.chunk_size or self.chunk_size)
        reaction = reaction_to(how.code)
        if reaction is Reaction.STOP:
            return Plan(stop=True, wait=0.0, chunk_size=self.chunk_size)
        if reaction is Reaction.SHRINK:
            return self._shrink(sent, random)
        self._count(how, sent)
        return Plan(stop=False, wait=self._wait(reaction, how.retry_after, random), chunk_size=self.chunk_size)

    def refused(self, random: float) -> Plan:
        """Return what to do after a connection that was never established."""
        return Plan(stop=False, wait=self._backoff(random), chunk_size=self.chunk_size)

    def _count(self, how: Closed, sent: int) -> None:
        """Count consecutive losses without progress; after three of them chunks are halved.

        A proxy may cut large messages without a close code, and a slow line may never carry a whole chunk in time. At the
        smallest chunk size the client only backs off.
        """
        if how.code in CLOSES_THAT_DO_NOT_COUNT:
            return
        self.losses = self.losses + 1 if how.code in LOSSES and how.stuck else 0
        if self.losses >= LOSSES_THAT_HALVE:
            self.losses = 0
            if sent > CHUNK_SIZE_MIN:
                self.chunk_size = sent // 2
                self._guessed = True

    def _shrink(self, sent: int, random: float) -> Plan:
        self.losses = 0
        if sent <= CHUNK_SIZE_MIN:
            return Plan(stop=True, wait=0.0, chunk_size=sent)
        self.chunk_size = sent // 2
        self._guessed = False
        return Plan(stop=False, wait=self._backoff(random), chunk_size=self.chunk_size, shrunk=True)

    def _wait(self, reaction: Reaction, retry_after: float | None, random: float) -> float:
        if reaction is Reaction.WAIT:
            self.attempt += 1
            return WAIT_WITHOUT_ADVICE_SECONDS if retry_after is None else retry_after
        if reaction is Reaction.RETURN and retry_after is not None:
            # The advice applies to the first attempt after this close. If that is refused, backoff applies.
            self.attempt += 1
            return retry_after
        return self._backoff(random)

    def _backoff(self, random: float) -> float:
        """Full jitter: attempt n waits a uniform time in 0 .. min(maximum, initial * 2^n)."""
        wait = random * min(self.maximum, self.initial * 2.0 ** min(self.attempt, 60))
        self.attempt += 1
        return wait
