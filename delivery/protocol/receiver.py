"""The receiving side of one transfer on one connection (PROTOCOL sections 2 to 5).

It checks what comes, says what may come, what is to be stored now, and what to tell the sender. The driver keeps the
data and stores it. It does not know whether it serves a server's upload or a client's delivery.
"""

from __future__ import annotations

import enum

from delivery.errors import MessagesLost, ProtocolViolation, Refused, TransferAborted, UsageError
from delivery.protocol.codes import REJECT_CODES
from delivery.protocol.frames import CHUNK_SIZE_MIN, MAX_SEQ, Chunk, agreed_chunk_size, chunk_count
from delivery.protocol.messages import Abort, Accept, Done, Finish, Nack, Offer, Reject
from delivery.protocol.states import Move, State
from delivery.protocol.storing import ChunkRange as ChunkRange
from delivery.protocol.storing import Storing
from delivery.protocol.storing import Terms as Terms

NACKS_OF_ONE_SEQ = 2  # a third one is an abort


class Taken(enum.Enum):
    """What became of a chunk."""

    KEPT = "kept"  # the driver keeps its data until it is stored
    DROPPED = "dropped"  # seen before, or not wanted now
    DAMAGED = "damaged"  # its checksum is wrong: send what `lost` returns


class Receiver(Storing):
    """One incoming transfer.

    Attributes, in chunks: `stored`, everything below is stored (what an ack says); `received`, the next number wanted;
    `handed`, where the next run to store begins; `limit`, the credit given. `size` is in bytes, None while unknown.
    """

    def __init__(self, offer: Offer, *, early_data: int = 0, now: float = 0.0) -> None:
        super().__init__(offer, now=now)
        self.sha256 = offer.sha256
        self.finish: Finish | None = None
        self._early = offer.size is not None and 0 < offer.size <= min(early_data, offer.chunk_size)
        self._rewinding = False
        self._ended_short: int | None = None

    # -- answering the offer ---------------------------------------------------------------------------------------

    def accept(
        self,
        *,
        chunk_size: int,
        stored: int,
        terms: Terms,
        now: float,
        expires: str | None = None,
        hold: bool = False,
        size: int | None = None,
    ) -> Accept:
        """Accept from byte `stored` on. `chunk_size`: the largest that we announced. Returns the answer to send.

        `size`: of the payload in bytes, where it is known although this offer does not tell. Early data that came
        already stays taken in. Raises `UsageError` where `stored` is no place between two chunks, `Refused` where the
        payload has more chunks than can be counted.
        """
        total = self.size if size is None else size
        if total is None and stored % CHUNK_SIZE_MIN:
            total = stored  # an earlier connection's last, short chunk is in it
        chosen = agreed_chunk_size(self.chunk_size, chunk_size, stored, total)
        if chosen < CHUNK_SIZE_MIN or (total is not None and stored > total):
            raise UsageError(f"cannot go on from byte {stored} of {total}")
        if total is not None and chunk_count(total, chosen) > MAX_SEQ:
            raise Refused("too_large", max_size=MAX_SEQ * chosen)
        self._local(Move.ACCEPT)
        self._begin(chunk_count(stored, chosen), chosen, total, now)
        self._terms, self.held = terms, hold
        self.limit = self.stored if hold else self.stored + self._window_chunks
        return Accept(
            transfer=self.transfer,
            handle=self.handle,
            chunk_size=chosen,
            seq=self.stored,
            limit=self.limit,
            expires=expires,
        )

    def _begin(self, position: int, chunk_size: int, size: int | None, now: float) -> None:
        """Start at chunk `position`, or behind what came early."""
        if chunk_size != self.chunk_size:  # then it was no first offer: what came early does not fit
            self.received, self.finish = 0, None
        self.chunk_size, self.size = chunk_size, size
        self.stored = self.handed = position
        self.received = max(position, self.received)
        self._rewinding = self._rewinding and position == 0
        self._pending_since = now
        self._reported = (position, now)
        if self.finish is not None:
            self._local(Move.FINISH)

    @property
    def owes_nack(self) -> bool:
        """Whether early data came damaged, which cannot be said before the accept: `lost` is due."""
        return self._rewinding and self.state is State.OPEN and not self._nacks

    def reject(
        self, code: str, message: str = "", *, max_size: int | None = None, retry_after: float | None = None
    ) -> Reject:
        """Return the message that refuses the offer. Raises `UsageError` for a code that the protocol does not have."""
        if code not in REJECT_CODES:
            raise UsageError(f"no reject is called {code}")
        self._local(Move.REJECT)
        return Reject(
            transfer=self.transfer,
            handle=self.handle,
            code=code,
            message=message,
            max_size=max_size,
            retry_after=retry_after,
        )

    # -- what the sender sends -------------------------------------------------------------------------------------

    def on_chunk(self, chunk: Chunk, now: float) -> Taken:
        """Check a chunk. `KEPT`: the driver keeps its data until `on_stored` covers it.

        Raises `ProtocolViolation` for what section 3 forbids, `MessagesLost` where chunks before it are missing,
        `TransferAborted` where the payload grows beyond what is allowed: the driver then sends `abort`.
        """
        seq, length = chunk.seq, len(chunk.data)
        if seq < self.received or (self._rewinding and seq != self.received):
            return Taken.DROPPED
        self._check_place(seq, length)
        if not chunk.intact():
            self._rewinding = True
            return Taken.DAMAGED
        self._rewinding = False
        if self.size is None:
            self._check_growth(seq, length)
        if self.received == self.handed:
            self._pending_since = now
        self.received = seq + 1
        return Taken.KEPT

    def _check_place(self, seq: int, length: int) -> None:
        allowed = self.limit if self.state is not State.OFFERED else int(self._early)
        if seq >= allowed:
            raise ProtocolViolation("chunk beyond the limit")
        if self.finish is not None or (self.size is not None and seq * self.chunk_size >= self.size):
            raise ProtocolViolation("chunk past the end")
        if seq > self.received:
            raise MessagesLost("chunks lost on the way")
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
        """Take `finish`, which freezes the transfer; return False where it is dropped (repeated, or while rewinding).

        Raises `MessagesLost` where more chunks were sent than came, `ProtocolViolation` for any other wrong count.
        """
        if self._rewinding or self.finish is not None:
            return False
        if self.state is State.OFFERED and not self._early:
            raise ProtocolViolation("finish before accept")
        if message.chunks > self.received:
            raise MessagesLost("chunks lost on the way")
        size = self.received * self.chunk_size if self.size is None else self.size
        if (
            message.chunks != self.received
            or message.size != size
            or chunk_count(size, self.chunk_size) != self.received
        ):
            raise ProtocolViolation("finish with wrong counts")
        if self.state is not State.OFFERED:
            self._remote(Move.FINISH)
        self.size = size
        self.finish = message
        return True

    def on_abort(self, message: Abort) -> None:
        self._remote(Move.ABORT if message.final else Move.DETACH)

    # -- going back -----------------------------------------------------------------------------------------------

    def lost(self, seq: int, code: str) -> Nack | Abort:
        """Go back to chunk `seq`, which came damaged (`checksum`) or was gone before it was stored (`lost`).

        Returns the message to send: a nack, or instead of the third one of the same chunk an abort that detaches.
        Runs that were handed out from `seq` on are void: the driver fences them. A `finish` is to be said again.
        Raises `UsageError` for a chunk that is stored, or that never came.
        """
        came = self.received + self._rewinding  # one chunk more than was taken in, where one came damaged or was lost
        if not self.stored <= seq < came:
            raise UsageError(f"cannot go back to {seq}: {self.stored} stored, {came} came")
        self._nacks[seq] += 1
        if self._nacks[seq] > NACKS_OF_ONE_SEQ:
            return self.abort("integrity", "damaged or lost three times", final=False)
        self._local(Move.REWIND)
        self.received = seq
        self.handed = min(self.handed, seq)
        self.finish = None
        self._rewinding = True
        self._reported = (seq, self._reported[1])
        if self._ended_short is not None:  # the short chunk is dropped, and with it what it told
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
        """Return the message that ends the transfer: stored and checked. Also answers an offer of a finished one.

        Raises `UsageError` where it is not all stored, or `size` or `sha256` are not what the sender said.
        """
        if self.size not in (None, size) or self.expected_digests() - {sha256}:
            raise UsageError("done with another size or digest than the sender's")
        if self.state is State.FINISHING and not self.complete:
            raise UsageError(f"done with {self.stored} of {self.chunks} chunks stored")
        self._local(Move.DONE)
        return Done(transfer=self.transfer, handle=self.handle, size=size, sha256=sha256, payload=payload)

    def abort(self, code: str, message: str = "", *, final: bool, retry_after: float | None = None) -> Abort:
        """End the transfer (`final`) or detach it from this connection; return the message that says so."""
        return self._abort(code, message, final=final, retry_after=retry_after)
