"""The receiving side of one transfer on one connection (PROTOCOL sections 2 to 5).

It checks what comes, says what may come, what is to be stored now, and what to tell the sender. The driver keeps the
data and stores it. It does not know whether it serves a server's upload or a client's delivery.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from delivery.errors import ProtocolViolation, TransferAborted, UsageError
from delivery.protocol.frames import MAX_SEQ, Chunk, agreed_chunk_size, chunk_count
from delivery.protocol.messages import Abort, Accept, Ack, Done, Finish, Nack, Offer, Reject
from delivery.protocol.states import Machine, Move, State

STORE_AFTER_SECONDS = 2.0
REPORT_AFTER_SECONDS = 0.5
STALL_SECONDS = 60.0
NACKS_OF_ONE_SEQ = 2  # a third one is an abort


class Taken(enum.Enum):
    """What became of a chunk."""

    KEPT = "kept"  # the driver keeps its data until it is stored
    DROPPED = "dropped"  # seen before, or not wanted now
    DAMAGED = "damaged"  # its checksum is wrong: send what `lost` returns


@dataclass(frozen=True, slots=True)
class Run:
    """Chunks `start` (inclusive) to `end` (exclusive) that are to be stored now, as one segment."""

    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a receiver grants. All in bytes: `window` unacked at most, `segment_size` stored as one run, `max_size`."""

    window: int
    segment_size: int
    max_size: int


class Receiver(Machine):
    """One incoming transfer.

    Attributes, in chunks: `stored`, everything below is stored (what an ack says); `received`, the next number wanted;
    `handed`, where the next run to store begins; `limit`, the credit given. `size` is in bytes, None while unknown.
    """

    def __init__(self, offer: Offer, *, early_data: int = 0, now: float = 0.0) -> None:
        super().__init__()
        self.offer = offer
        self.handle = offer.handle
        self.transfer = offer.transfer
        self.chunk_size = offer.chunk_size
        self.size = offer.size
        self.sha256 = offer.sha256
        self.stored = self.received = self.handed = 0
        self.limit = 0
        self.finish: Finish | None = None
        self.held = False
        self.progress_at = now
        self._terms: Terms | None = None  # granted by `accept`
        self._early = offer.size is not None and 0 <= offer.size <= min(early_data, offer.chunk_size)
        self._rewinding = False
        self._nacks: tuple[int, int] = (-1, 0)
        self._pending_since = now
        self._ack_due = False
        self._reported = (0, now)
        self._ended_short: int | None = None

    @property
    def chunks(self) -> int | None:
        """The number of chunks, None while the size is unknown."""
        return None if self.size is None else chunk_count(self.size, self.chunk_size)

    def offset(self, seq: int) -> int:
        """Return the byte position at which chunk `seq` begins, at most the payload's size."""
        offset = seq * self.chunk_size
        return offset if self.size is None else min(offset, self.size)

    # -- answering the offer ---------------------------------------------------------------------------------------

    def accept(
        self, *, chunk_size: int, stored: int, terms: Terms, now: float, expires: str | None = None, hold: bool = False
    ) -> Accept:
        """Accept from byte `stored` on. `chunk_size`: the largest that we announced. Returns the answer to send.

        Early data that came already stays taken in. Raises `UsageError` where `stored` is not a whole number of chunks.
        """
        chosen = agreed_chunk_size(self.chunk_size, chunk_size, stored, self.size)
        position = chunk_count(stored, chosen)
        if position * chosen != stored and stored != self.size:
            raise UsageError(f"cannot go on from byte {stored} with chunks of {chosen}")
        self._local(Move.ACCEPT)
        early = self.received if chosen == self.chunk_size else 0
        self.chunk_size, self._terms, self.held = chosen, terms, hold
        self.stored = self.handed = position
        self.received = max(position, early)
        self.limit = position if hold else position + self._window_chunks
        self.progress_at = self._pending_since = now
        self._reported = (self.received, now)
        if self.finish is not None:
            self._local(Move.FINISH)
        return Accept(
            transfer=self.transfer,
            handle=self.handle,
            chunk_size=chosen,
            seq=position,
            limit=self.limit,
            expires=expires,
        )

    def reject(
        self, code: str, message: str = "", *, max_size: int | None = None, retry_after: float | None = None
    ) -> Reject:
        self._local(Move.REJECT)
        return Reject(
            transfer=self.transfer,
            handle=self.handle,
            code=code,
            message=message,
            max_size=max_size,
            retry_after=retry_after,
        )

    @property
    def _window_chunks(self) -> int:
        return max(1, self._terms.window // self.chunk_size) if self._terms else 0

    # -- what the sender sends -------------------------------------------------------------------------------------

    def on_chunk(self, chunk: Chunk, now: float) -> Taken:
        """Check a chunk. `KEPT`: the driver keeps its data until `on_stored` covers it.

        Raises `ProtocolViolation` for what section 3 forbids, `TransferAborted` where the payload grows beyond what is
        allowed: the driver then sends `abort`.
        """
        seq, length = chunk.seq, len(chunk.data)
        if seq < self.received or (self._rewinding and seq != self.received):
            return Taken.DROPPED
        self._check_place(seq, length)
        if not chunk.intact():
            return Taken.DAMAGED
        self._rewinding = False
        if self.size is None:
            self._check_growth(seq, length)
        if self.received == self.handed:
            self._pending_since = now
        self.received = seq + 1
        self.progress_at = now
        return Taken.KEPT

    def _check_place(self, seq: int, length: int) -> None:
        allowed = self.limit if self.state is not State.OFFERED else int(self._early)
        if seq >= allowed:
            raise ProtocolViolation("chunk beyond the limit")
        if seq > self.received:
            raise ProtocolViolation("gap between chunks")
        if self.finish is not None or (self.size is not None and seq * self.chunk_size >= self.size):
            raise ProtocolViolation("chunk past the end")
        expected = self.chunk_size if self.size is None else min(self.chunk_size, self.size - seq * self.chunk_size)
        if length > expected or (length < expected and self.size is not None):
            raise ProtocolViolation("chunk of the wrong length")

    def _check_growth(self, seq: int, length: int) -> None:
        total = seq * self.chunk_size + length
        if seq >= MAX_SEQ or (self._terms is not None and total > self._terms.max_size):
            raise TransferAborted("too_large", f"more than {self._terms.max_size if self._terms else MAX_SEQ} bytes")
        if length < self.chunk_size:
            self.size = self._ended_short = total  # the first short chunk is the last

    def on_finish(self, message: Finish) -> bool:
        """Take `finish`, which freezes the transfer; return False where it is dropped (repeated, or while rewinding)."""
        if self._rewinding or self.state is State.FINISHING:
            return False
        size = self.received * self.chunk_size if self.size is None else self.size
        if (
            message.chunks != self.received
            or message.size != size
            or chunk_count(size, self.chunk_size) != self.received
        ):
            raise ProtocolViolation("finish with wrong counts")
        if self.state is State.OFFERED:
            if not self._early:
                raise ProtocolViolation("finish before accept")
        else:
            self._remote(Move.FINISH)
        self.size = size
        self.finish = message
        return True

    def on_abort(self, message: Abort) -> None:
        self._remote(Move.ABORT if message.final else Move.DETACH)

    # -- storing ---------------------------------------------------------------------------------------------------

    def next_run(self, now: float) -> Run | None:
        """Return the run that is to be stored now, None while none is due. The driver starts storing it at once.

        Due is a full segment, everything before the sender runs out of credit or after `finish`, and what has waited
        for 2 s (PROTOCOL section 3). `wake_at` says when to ask again.
        """
        pending = self.received - self.handed
        if not pending or self._terms is None or not self.live:
            return None
        full = max(1, self._terms.segment_size // self.chunk_size)
        if pending >= full:
            return self._hand(full, now)
        complete = self.size is not None and self.received == self.chunks
        if self.received >= self.limit or complete or now >= self._pending_since + STORE_AFTER_SECONDS:
            return self._hand(pending, now)
        return None

    def rest(self, now: float) -> Run | None:
        """Return all that was taken in and not handed out yet, due or not: before a planned close."""
        full = max(1, self._terms.segment_size // self.chunk_size) if self._terms else 1
        pending = min(self.received - self.handed, full)
        return self._hand(pending, now) if pending else None

    def _hand(self, chunks: int, now: float) -> Run:
        run = Run(self.handed, self.handed + chunks)
        self.handed = run.end
        self._pending_since = now
        return run

    def wake_at(self) -> float | None:
        """Return the monotonic time at which `next_run` or `next_ack` may have something by time alone."""
        if not self.live:
            return None
        times = []
        if self.received > self.handed:
            times.append(self._pending_since + STORE_AFTER_SECONDS)
        if self.received > self._reported[0]:
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

    def hold(self) -> None:
        """Give no more credit; what was given stays given."""
        self.held = True

    def release(self) -> None:
        """Give credit again."""
        self.held = False
        self._ack_due = True

    def next_ack(self, now: float) -> Ack | None:
        """Return the ack to send now, None while there is nothing new to say."""
        if self.state not in (State.OPEN, State.FINISHING) or self._terms is None:
            return None
        reported, at = self._reported
        if not self._ack_due and not (self.received > reported and now >= at + REPORT_AFTER_SECONDS):
            return None
        if not self.held:
            self.limit = max(self.limit, self.stored + self._window_chunks)
        self._ack_due = False
        self._reported = (self.received, now)
        return Ack(handle=self.handle, seq=self.stored, received=self.received, limit=self.limit)

    def lost(self, seq: int, code: str) -> Nack | Abort:
        """Go back to chunk `seq`, which came damaged (`checksum`) or was gone before it was stored (`lost`).

        Returns the message to send: a nack, or instead of the third one of the same chunk an abort that detaches.
        Runs that were handed out from `seq` on are void: the driver fences them. A `finish` is to be said again.
        """
        if not self.stored <= seq <= self.received:
            raise UsageError(f"cannot go back to {seq}: {self.stored} stored, {self.received} taken in")
        times = self._nacks[1] + 1 if self._nacks[0] == seq else 1
        self._nacks = (seq, times)
        if times > NACKS_OF_ONE_SEQ:
            return self.abort("integrity", "damaged three times", final=False)
        self._local(Move.REWIND)
        self.received = seq
        self.handed = min(self.handed, seq)
        self.finish = None
        self._rewinding = True
        if self._ended_short is not None and seq * self.chunk_size < self._ended_short:
            self.size = self._ended_short = None
        return Nack(handle=self.handle, seq=seq, code=code)

    # -- ending ----------------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether `finish` came and everything is stored: only the digest is left to check."""
        return self.state is State.FINISHING and self.stored == self.chunks

    def expected_digests(self) -> set[str]:
        """Return the digests that the sender gave, at the offer and at `finish`: what is stored must agree with all."""
        given = {self.sha256, self.finish.sha256 if self.finish else None}
        return {digest for digest in given if digest is not None}

    def done(self, *, size: int, sha256: str, payload: str | None = None) -> Done:
        """Return the message that ends the transfer: stored and checked. Also answers an offer of a finished one."""
        self._local(Move.DONE)
        return Done(transfer=self.transfer, handle=self.handle, size=size, sha256=sha256, payload=payload)

    def abort(self, code: str, message: str = "", *, final: bool, retry_after: float | None = None) -> Abort:
        """End the transfer (`final`) or detach it from this connection; return the message that says so."""
        self._local(Move.ABORT if final else Move.DETACH)
        return Abort(
            transfer=self.transfer, handle=self.handle, code=code, message=message, final=final, retry_after=retry_after
        )

    def stalled(self, now: float) -> bool:
        """Return whether the sender had credit and something to send, and sent nothing for 60 s."""
        waiting = self.state is State.OPEN and self.received < self.limit and not self.held
        return waiting and now - self.progress_at >= STALL_SECONDS
