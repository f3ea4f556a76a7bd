"""From taken in to stored to acked: which chunks are due to be stored, and what the sender hears (PROTOCOL section 3).

The lower half of a `Receiver`: it counts chunks and credit, and neither checks what comes nor keeps any data.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from delivery.errors import UsageError
from delivery.protocol.frames import chunk_count
from delivery.protocol.messages import Ack, Offer
from delivery.protocol.states import Machine, State

STORE_AFTER_SECONDS = 2.0
REPORT_AFTER_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class ChunkRange:
    """Chunks `start` (inclusive) to `end` (exclusive) of one transfer, by their numbers."""

    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a receiver grants. All in bytes: `window` unacked at most, `segment_size` stored as one run, `max_size`."""

    window: int
    segment_size: int
    max_size: int


class Storing(Machine):
    """The positions of one incoming transfer; `Receiver` says what they mean."""

    def __init__(self, offer: Offer, *, now: float) -> None:
        super().__init__(offer.transfer, offer.handle)
        self.offer = offer
        self.chunk_size = offer.chunk_size
        self.size = offer.size
        self.stored = self.received = self.handed = 0
        self.limit = 0
        self.held = False
        self._terms: Terms | None = None  # granted by `accept`
        self._nacks: Counter[int] = Counter()  # how often each chunk that is not stored yet was asked for again
        self._pending_since = now
        self._ack_due = False
        self._reported = (0, now)  # what the last accept, ack or nack said, and when

    @property
    def chunks(self) -> int | None:
        """The number of chunks, None while the size is unknown."""
        return None if self.size is None else chunk_count(self.size, self.chunk_size)

    def offset(self, seq: int) -> int:
        """Return the byte position at which chunk `seq` begins, at most the payload's size."""
        offset = seq * self.chunk_size
        return offset if self.size is None else min(offset, self.size)

    @property
    def _window_chunks(self) -> int:
        return max(1, self._terms.window // self.chunk_size) if self._terms else 0

    @property
    def _segment_chunks(self) -> int:
        return max(1, self._terms.segment_size // self.chunk_size) if self._terms else 1

    def next_run(self, now: float) -> ChunkRange | None:
        """Return the run that is to be stored now, None while none is due. The driver starts storing it at once.

        Due is a full segment, everything before the sender runs out of credit or after `finish`, and what has waited
        for 2 s (PROTOCOL section 3). `wake_at` says when to ask again.
        """
        pending = self.received - self.handed
        if not pending or self._terms is None or not self.live:
            return None
        full = self._segment_chunks
        if pending >= full:
            return self._hand(full)
        complete = self.size is not None and self.received == self.chunks
        if self.received >= self.limit or complete or now >= self._pending_since + STORE_AFTER_SECONDS:
            return self._hand(pending)
        return None

    def rest(self, now: float) -> ChunkRange | None:
        """Return the next run of what was taken in and not handed out yet, due or not. To be asked until it returns None.

        Before a planned close, and behind a detachment: what is stored then need not be sent again.
        """
        if self._terms is None or self.state is State.ABORTED:
            return None
        pending = min(self.received - self.handed, self._segment_chunks)
        return self._hand(pending) if pending else None

    def _hand(self, chunks: int) -> ChunkRange:
        run = ChunkRange(self.handed, self.handed + chunks)
        self.handed = run.end
        return run

    def wake_at(self) -> float | None:
        """Return the monotonic time at which `next_run` or `next_ack` may have something by time alone."""
        if self.state not in (State.OPEN, State.FINISHING):
            return None
        times = []
        if self.received > self.handed:
            times.append(self._pending_since + STORE_AFTER_SECONDS)
        if self._ack_due:
            times.append(self._reported[1])  # at once
        elif self.received > self._reported[0]:
            times.append(self._reported[1] + REPORT_AFTER_SECONDS)
        return min(times, default=None)

    def on_stored(self, seq: int) -> None:
        """Note that every chunk below `seq` is stored. Falling numbers are ignored: acked positions never decrease."""
        if seq <= self.stored:
            return
        if seq > self.received:
            raise UsageError(f"stored up to {seq}, but only {self.received} were taken in")
        self.stored = seq
        self.handed = max(self.handed, seq)
        self._ack_due = True
        for settled in [asked for asked in self._nacks if asked < seq]:
            del self._nacks[settled]

    def resize(self, window: int) -> None:
        """Let at most `window` bytes be unacked from now on, one chunk at least; credit that was given stays given."""
        if self._terms is not None:
            self._terms = replace(self._terms, window=window)

    def hold(self) -> None:
        """Give no more credit; what was given stays given."""
        self.held = True

    def release(self) -> None:
        """Give credit again."""
        self.held = False
        self._ack_due = True

    def next_ack(self, now: float, *, at_once: bool = False) -> Ack | None:
        """Return the ack to send now, None while there is nothing new to say.

        What was taken in is reported every 0.5 s, with `at_once` now: before a pong (PROTOCOL section 5).
        """
        if self.state not in (State.OPEN, State.FINISHING) or self._terms is None:
            return None
        reported, at = self._reported
        due = at_once or now >= at + REPORT_AFTER_SECONDS
        if not self._ack_due and not (self.received > reported and due):
            return None
        if not self.held and self.stored + self._window_chunks > self.limit:
            self.limit = self.stored + self._window_chunks
        self._ack_due = False
        self._reported = (self.received, now)
        return Ack(handle=self.handle, seq=self.stored, received=self.received, limit=self.limit)
