"""The sending side of one transfer on one connection (PROTOCOL sections 2 to 5).

Holds numbers, never bytes: it says which span is to be sent next, the driver reads and sends it. It does not know
whether it serves a client's upload or a server's delivery.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from delivery.errors import ProtocolViolation, UsageError
from delivery.protocol.frames import MAX_SEQ, chunk_count, is_chunk_size
from delivery.protocol.messages import Abort, Accept, Ack, Done, Finish, Nack, Offer, Reject
from delivery.protocol.states import Machine, Move, State

STALL_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Span:
    """What to send next: chunk `seq`, the bytes from `offset` on, at most `length` of them.

    Where the size of the payload is known, exactly `length` bytes; where it is not, fewer mean that it ends here.
    """

    seq: int
    offset: int
    length: int


class Sender(Machine):
    """One outgoing transfer.

    Attributes (all in chunks but where named otherwise): `acked`, everything below is safe with the receiver;
    `received`, what the receiver says it has taken in; `limit`, absolute credit; `next_seq`, what is sent next;
    `sent`, one more than the highest number ever sent on this handle; `size`, in bytes, None until known. `answers`
    counts accepts and nacks; `moved` says whether an ack ever raised `acked` or `received`.
    """

    def __init__(self, offer: Offer, *, early: bool = False, now: float = 0.0) -> None:
        super().__init__(offer.transfer, offer.handle)
        self.offer = offer
        self.chunk_size = offer.chunk_size
        self.size = offer.size
        self.sha256 = offer.sha256
        self.acked = 0
        self.received = 0
        self.next_seq = 0
        self.sent = 0
        self.limit = 1 if early else 0
        self.finished = False
        self.paused = False
        self.progress_at = now
        self.answers = 0
        self.moved = False
        self._early = early
        self._accepted_at = now
        self._sent_at: deque[float] = deque()  # when each chunk from `received` to `next_seq` was last sent

    @property
    def chunks(self) -> int | None:
        """The number of chunks, None while the size is unknown."""
        return None if self.size is None else chunk_count(self.size, self.chunk_size)

    @property
    def acked_bytes(self) -> int:
        return self._bytes(self.acked)

    @property
    def received_bytes(self) -> int:
        return self._bytes(self.received)

    @property
    def longest_acked(self) -> int:
        """The length in bytes of the longest chunk that is acked, 0 while none is."""
        return min(self.chunk_size, self.acked_bytes)

    @property
    def in_flight(self) -> bool:
        """Whether chunks were sent that no ack covers."""
        return self.sent > self.acked

    @property
    def unreceived_since(self) -> float | None:
        """When the oldest chunk not in `received` was last sent, or accepted if that came later; None where there is none."""
        if not self._sent_at or self.state not in (State.OPEN, State.FINISHING):
            return None
        return max(self._sent_at[0], self._accepted_at)

    def _bytes(self, seq: int) -> int:
        offset = seq * self.chunk_size
        return offset if self.size is None else min(offset, self.size)

    @property
    def _may_send(self) -> bool:
        return self.state is State.OPEN or (self._early and self.state is State.OFFERED)

    # -- what to send ----------------------------------------------------------------------------------------------

    def chunk_due(self) -> bool:
        """Return whether there is credit, and something left to send with it: then `next_span` says what."""
        if self.next_seq >= self.limit or self.paused or self.finished or not self._may_send:
            return False
        return self.size is None or self.next_seq * self.chunk_size < self.size

    def next_span(self) -> Span | None:
        """Return the span to send next, or None while there is no credit or nothing left.

        After sending its chunk the driver calls `chunk_sent`; a driver that waits in between asks again first, since a
        nack may have changed the span. Where the size is unknown and the source ends inside the span or before it
        (everything may be stored already, and the last chunk short), the driver calls `end` first.
        """
        if not self.chunk_due():
            return None
        offset = self.next_seq * self.chunk_size
        length = self.chunk_size if self.size is None else min(self.chunk_size, self.size - offset)
        return Span(self.next_seq, offset, length)

    def chunk_sent(self, seq: int, now: float) -> None:
        """Note that the chunk of the last `next_span` is on its way. `now`: monotonic seconds."""
        if seq != self.next_seq:
            raise UsageError(f"expected chunk {self.next_seq} to be sent, not {seq}")
        if not self.in_flight:
            self.progress_at = now
        self.next_seq = seq + 1
        self.sent = max(self.sent, self.next_seq)
        self._sent_at.append(now)

    def _forget_received(self) -> None:
        while len(self._sent_at) > max(0, self.next_seq - self.received):
            self._sent_at.popleft()

    def end(self, size: int) -> None:
        """Say that the payload has `size` bytes. Raises `UsageError` if that contradicts its offer or what was sent."""
        if self.size is not None and self.size != size:
            raise UsageError(f"the source has {size} bytes, {self.size} were offered")
        if size < 0 or self.sent > chunk_count(size, self.chunk_size):
            raise UsageError(f"the source has {size} bytes, {self.sent} chunks of {self.chunk_size} were sent")
        self.size = size

    def finish_due(self) -> bool:
        """Return whether everything has been sent and `finish` has not."""
        if self.finished or self.paused or not self._may_send:
            return False
        chunks = self.chunks
        return chunks is not None and self.next_seq >= chunks

    def finish(self, sha256: str | None) -> Finish:
        """Return the message that ends the payload. `sha256`: lower-case hex, None where it is not known."""
        chunks = self.chunks
        if chunks is None or self.size is None or not self.finish_due():
            raise UsageError("finish before everything was sent")
        if chunks > MAX_SEQ:
            raise UsageError("more chunks than a sequence number can count")
        self.sha256 = sha256 or self.sha256
        self.finished = True
        if self.state is State.OPEN:
            self._local(Move.FINISH)
        return Finish(handle=self.handle, chunks=chunks, size=self.size, sha256=sha256)

    def abort(self, code: str, message: str = "", *, final: bool, retry_after: float | None = None) -> Abort:
        """End the transfer (`final`) or detach it from this connection; return the message that says so."""
        return self._abort(code, message, final=final, retry_after=retry_after)

    def stalled(self, now: float) -> bool:
        """Return whether credit was open, chunks were unacked or due, and nothing moved for 60 s (PROTOCOL section 5).

        To be asked every few seconds: the 60 s begin anew whenever nothing is due, such as while a producer pauses.
        """
        live = self.state in (State.OPEN, State.FINISHING)
        if not (live and self.next_seq < self.limit and (self.in_flight or self.chunk_due())):
            self.progress_at = now
            return False
        return now - self.progress_at >= STALL_SECONDS

    # -- what the receiver said ------------------------------------------------------------------------------------

    def on_accept(self, message: Accept, now: float) -> None:
        """Take the receiver's answer: where to go on, with which chunk size, up to where."""
        if message.chunk_size > self.offer.chunk_size or not is_chunk_size(message.chunk_size):
            raise ProtocolViolation("accept with a larger chunk size than offered")
        if message.limit < message.seq:
            raise ProtocolViolation("accept with limit below seq")
        chunks = None if self.size is None else chunk_count(self.size, message.chunk_size)
        if chunks is not None and not message.seq <= chunks <= MAX_SEQ:
            raise ProtocolViolation("accept beyond the payload, or of more chunks than can be counted")
        self._remote(Move.ACCEPT)
        if message.chunk_size != self.chunk_size:  # what went early, went in other chunks
            self.chunk_size = message.chunk_size
            self.next_seq = self.sent = 0
            self._sent_at.clear()
            self.finished = False
        self.acked = self.received = message.seq
        self.limit = message.limit
        self.next_seq = max(self.next_seq, message.seq)
        self.sent = max(self.sent, self.next_seq)
        self.progress_at = self._accepted_at = now
        self.answers += 1
        self._forget_received()
        if self.finished:  # said early, with its only chunk
            self._local(Move.FINISH)

    def on_reject(self, message: Reject) -> None:
        self._remote(Move.REJECT)

    def on_ack(self, message: Ack, now: float) -> bool:
        """Take an ack; return whether it moved."""
        if not self.acked <= message.seq <= message.received:
            raise ProtocolViolation("ack falls, or is above received")
        if message.received > self.sent:
            raise ProtocolViolation("ack beyond what was sent")
        if message.limit < self.limit:
            raise ProtocolViolation("limit falls")
        self._remote(Move.ACK)
        moved = message.seq > self.acked
        if moved or message.received > self.received or message.limit > self.limit:
            self.progress_at = now
        self.moved = self.moved or moved or message.received > self.received
        self.acked, self.received, self.limit = message.seq, message.received, message.limit
        # A receiver may be ahead of a nack that is still on its way: what it holds is not sent again.
        self.next_seq = max(self.next_seq, self.acked)
        self._forget_received()
        return moved

    def on_nack(self, message: Nack) -> None:
        """Go back to the chunk that the receiver wants again; `finish` is to be said again too."""
        if not self.acked <= message.seq < self.sent:
            raise ProtocolViolation("nack of what is acked, or was not sent")
        self._remote(Move.REWIND)
        self.next_seq = self.received = message.seq
        self.answers += 1
        self._sent_at.clear()
        self.finished = False

    def on_done(self, message: Done) -> None:
        """Take the end: stored, checked, complete."""
        if self.size is not None and message.size != self.size:
            raise ProtocolViolation("done with another size")
        if self.sha256 is not None and message.sha256 != self.sha256:
            raise ProtocolViolation("done with another digest")
        self._remote(Move.DONE)
        self.moved = True
        self.size = message.size
        self.acked = self.received = self.next_seq = chunk_count(message.size, self.chunk_size)

    def on_abort(self, message: Abort) -> None:
        self._remote(Move.ABORT if message.final else Move.DETACH)
