"""The transfers of one connection: offering, answering, chunks and acks, in both directions (PROTOCOL sections 2 to 5).

Passes each message to the state machine of its transfer, and returns the events. It knows handles and turns. `connection`
adds the greeting, heartbeats and the close.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace

from delivery.errors import ProtocolViolation, TransferAborted, UsageError
from delivery.protocol import events, frames, messages
from delivery.protocol.events import Event
from delivery.protocol.handles import Handles
from delivery.protocol.limits import MAX_UNANSWERED_OFFERS, Limits, Side
from delivery.protocol.messages import Abort, Message, Offer
from delivery.protocol.receiver import Receiver, Taken, Terms
from delivery.protocol.sender import Sender
from delivery.protocol.states import State
from delivery.protocol.turns import Turns


class Exchange:
    """What both sides of a connection do with transfers.

    `peer` is what the other side announced, None before that. `senders` and `receivers` hold the live transfers of
    each direction by handle. `outbox`: the messages that the driver sends next. `going_away`: a planned close is near.
    """

    def __init__(self, side: Side, limits: Limits) -> None:
        if limits.chunk_size + frames.HEADER_BYTES > limits.max_message:
            raise UsageError("chunk_size and a header do not fit into max_message")
        self.side = side
        self.limits = limits
        self.peer: Limits | None = None
        self.outbox: deque[Message] = deque()
        self.senders: dict[int, Sender] = {}
        self.receivers: dict[int, Receiver] = {}
        self.welcomed = False
        self.going_away = False
        self._offered = Handles()  # by us
        self._incoming = Handles()  # offered by the peer
        self._turns = Turns()
        server = side is Side.SERVER
        self._theirs = messages.FROM_CLIENT if server else messages.FROM_SERVER
        self._ours = messages.FROM_SERVER if server else messages.FROM_CLIENT

    # -- sending ---------------------------------------------------------------------------------------------------

    def unanswered(self) -> int:
        """Return how many of our offers wait for an answer; at most 16 may."""
        return _unanswered(self.senders)

    def can_offer(self) -> bool:
        """Return whether one more offer may be sent now."""
        return self.welcomed and not self.going_away and self.unanswered() < MAX_UNANSWERED_OFFERS

    def offer(self, offer: Offer, *, first: bool, now: float) -> Sender:
        """Send an offer; its handle and chunk size are set here. Returns the machine that sends the payload.

        `first`: this transfer was never offered before, so that a small payload may go as early data (section 2).
        Raises `UsageError` before the welcome, where 16 offers are unanswered, and for what no offer may hold.
        """
        if self.peer is None or not self.can_offer():
            raise UsageError("cannot offer now")
        largest = min(offer.chunk_size, self.peer.fitting())
        offer = replace(offer, handle=self._offered.highest + 1, chunk_size=largest)
        messages.check(offer, self._ours)
        self._offered.take(offer.handle)
        early = first and offer.size is not None and 0 < offer.size <= min(self.peer.early_data, offer.chunk_size)
        sender = Sender(offer, early=early, now=now)
        self.senders[offer.handle] = sender
        self._turns.join(offer.handle)
        self.outbox.append(offer)
        return sender

    def next_turn(self) -> Sender | None:
        """Return the sender whose turn it is: one that has a chunk or `finish` to send, each in its turn.

        Call it again after every chunk, so that a small payload passes between the chunks of a large one.
        """
        return None if self.going_away else self._turns.take(self.senders)

    def has_to_send(self) -> bool:
        """Return whether a message waits to be sent, or it is a sender's turn."""
        if self.outbox:
            return True
        return not self.going_away and any(one.chunk_due() or one.finish_due() for one in self.senders.values())

    def finish(self, sender: Sender, sha256: str | None) -> None:
        """Send `finish`. `sha256`: of the whole payload, None where a client does not know it."""
        if sha256 is None and self.side is Side.SERVER:
            raise UsageError("the finish of a delivery carries its digest")
        self.outbox.append(sender.finish(sha256))

    def abort(
        self,
        machine: Sender | Receiver,
        code: str,
        message: str = "",
        *,
        final: bool,
        retry_after: float | None = None,
    ) -> None:
        """End a transfer of either direction, or detach it, and tell the peer. `retry_after`: seconds, with `busy`."""
        self.outbox.append(machine.abort(code, message, final=final, retry_after=retry_after))
        self._forget(machine)

    # -- answering -------------------------------------------------------------------------------------------------

    def accept(
        self,
        receiver: Receiver,
        *,
        stored: int,
        terms: Terms,
        now: float,
        expires: str | None = None,
        hold: bool = False,
        size: int | None = None,
    ) -> list[Event]:
        """Accept an offer from byte `stored` on. Events: a `Rewound` where its early data came damaged.

        `size`: of the payload in bytes, where it is known although this offer does not tell. Raises `Refused`
        (`too_large`) where it has more chunks than can be counted: then `reject` it.
        """
        answer = receiver.accept(
            chunk_size=self.limits.chunk_size,
            stored=stored,
            terms=terms,
            now=now,
            expires=expires,
            hold=hold,
            size=size,
        )
        self.outbox.append(answer)
        return self.rewind(receiver, receiver.received, "checksum") if receiver.owes_nack else []

    def reject(
        self,
        receiver: Receiver,
        code: str,
        message: str = "",
        *,
        max_size: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.outbox.append(receiver.reject(code, message, max_size=max_size, retry_after=retry_after))
        self._forget(receiver)

    def done(self, receiver: Receiver, *, size: int, sha256: str, payload: str | None = None) -> None:
        self.outbox.append(receiver.done(size=size, sha256=sha256, payload=payload))
        self._forget(receiver)

    def rewind(self, receiver: Receiver, seq: int, code: str) -> list[Event]:
        """Send a nack, or an abort instead of the third one of the same chunk.

        A late report that something was `lost` changes nothing: it is stored meanwhile, or was asked for again already.
        """
        if code == "lost" and not receiver.stored <= seq < receiver.received:
            return []  # a second nack would send the sender back when it has repeated everything
        answer = receiver.lost(seq, code)
        self.outbox.append(answer)
        if isinstance(answer, Abort):
            return self._ended(receiver, events.ReceiverAborted(receiver, answer))
        return [events.Rewound(receiver)]

    def _abort_receiver(self, receiver: Receiver, aborted: TransferAborted) -> list[Event]:
        answer = receiver.abort(aborted.code, aborted.message, final=aborted.final)
        self.outbox.append(answer)
        return self._ended(receiver, events.ReceiverAborted(receiver, answer))

    def queue_acks(self, now: float, *, at_once: bool = False) -> None:
        """Put every ack that is due into the outbox; with `at_once` every one that has anything new to say."""
        for receiver in self.receivers.values():
            if (ack := receiver.next_ack(now, at_once=at_once)) is not None:
                self.outbox.append(ack)

    # -- what comes ------------------------------------------------------------------------------------------------

    def _take_chunk(self, receiver: Receiver, chunk: frames.Chunk, now: float) -> list[Event]:
        try:
            taken = receiver.on_chunk(chunk, now)
        except TransferAborted as aborted:
            return self._abort_receiver(receiver, aborted)
        if taken is Taken.KEPT:
            return [events.ChunkKept(receiver, chunk)]
        if taken is Taken.DAMAGED and receiver.state is not State.OFFERED:  # a nack may not come before the accept
            return self.rewind(receiver, receiver.received, "checksum")
        return []

    def _take_message(self, message: Message, now: float) -> list[Event]:
        """Take a message that belongs to a transfer."""
        match message:
            case messages.Ack() if sender := self._sender(message.handle):
                return [events.Acked(sender, sender.on_ack(message, now))]
            case messages.Offer():
                return self._on_offer(message, now)
            case messages.Finish():
                return self._on_finish(message)
            case messages.Accept() if sender := self._sender(message.handle, message.transfer):
                sender.on_accept(message, now)
                return [events.Accepted(sender)]
            case messages.Reject() if sender := self._sender(message.handle, message.transfer):
                sender.on_reject(message)
                return self._ended(sender, events.Rejected(sender, message))
            case messages.Nack() if sender := self._sender(message.handle):
                sender.on_nack(message)
            case messages.Done() if sender := self._sender(message.handle, message.transfer):
                sender.on_done(message)
                return self._ended(sender, events.Completed(sender, message.sha256, message.payload))
            case messages.Abort():
                return self._on_abort(message)
        return []

    def _on_offer(self, offer: Offer, now: float) -> list[Event]:
        self._incoming.take(offer.handle)
        if _unanswered(self.receivers) >= MAX_UNANSWERED_OFFERS:
            raise ProtocolViolation("too many unanswered offers", 4429)
        early = self.limits.early_data if offer.chunk_size <= self.limits.chunk_size else 0
        receiver = Receiver(offer, early_data=early, now=now)
        self.receivers[offer.handle] = receiver
        return [events.Offered(receiver)]

    def _on_finish(self, message: messages.Finish) -> list[Event]:
        receiver = self.receivers.get(message.handle)
        if receiver is None:
            self._incoming.check(message.handle)
            return []
        if self.side is Side.CLIENT and message.sha256 is None:
            raise ProtocolViolation("finish of a delivery without its digest")
        return [events.Finished(receiver)] if receiver.on_finish(message) else []

    def _on_abort(self, message: Abort) -> list[Event]:
        """An abort may be for either direction; the transfer's id tells which."""
        sender = self.senders.get(message.handle)
        if sender and sender.transfer == message.transfer:
            sender.on_abort(message)
            return self._ended(sender, events.SenderAborted(sender, message))
        receiver = self.receivers.get(message.handle)
        if receiver and receiver.transfer == message.transfer:
            receiver.on_abort(message)
            return self._ended(receiver, events.ReceiverAborted(receiver, message))
        if message.handle not in self._offered:
            self._incoming.check(message.handle)
        return []

    def _sender(self, handle: int, transfer: str | None = None) -> Sender | None:
        """Return our live sender of a handle, None where it is no longer live."""
        sender = self.senders.get(handle)
        if sender is None:
            self._offered.check(handle)
        elif transfer is not None and sender.transfer != transfer:
            raise ProtocolViolation("handle and transfer do not match")
        return sender

    def _ended(self, machine: Sender | Receiver, event: Event) -> list[Event]:
        self._forget(machine)
        return [event]

    def _forget(self, machine: Sender | Receiver) -> None:
        if isinstance(machine, Receiver):
            self.receivers.pop(machine.handle, None)
        elif self.senders.pop(machine.handle, None) is not None:
            self._turns.leave(machine.handle)


def _unanswered(machines: Mapping[int, Sender] | Mapping[int, Receiver]) -> int:
    return sum(machine.state is State.OFFERED for machine in machines.values())
