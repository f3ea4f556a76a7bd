"""What belongs to one whole connection: hello, handles, turns, heartbeats (PROTOCOL sections 1, 2 and 5).

The same class serves both ends; `Side` is all it knows of where it runs. Feed it what comes with `receive_text` and
`receive_bytes`, act on the events that they return, send what `outbox` holds, and then chunks in the order that
`next_turn` gives. Time comes in as monotonic seconds.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, replace
from typing import TypeVar

from delivery.errors import ProtocolViolation, TransferAborted, UsageError
from delivery.protocol import events, frames, messages
from delivery.protocol.events import Event
from delivery.protocol.messages import Abort, Message, Offer
from delivery.protocol.receiver import Receiver, Taken, Terms
from delivery.protocol.sender import Sender
from delivery.protocol.states import State

MAX_UNANSWERED_OFFERS = 16
HELLO_SECONDS = 5.0
SILENT_HEARTBEATS = 2.5
MAX_HANDLE = 2**32 - 1


class Side(enum.Enum):
    CLIENT = "client"
    SERVER = "server"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one side announces, in bytes: largest message, preferred chunk, largest payload that may come early."""

    max_message: int
    chunk_size: int
    early_data: int = 0

    def fitting(self) -> int:
        """Return the largest chunk size that fits `chunk_size` and a header into `max_message`."""
        room = self.max_message - frames.HEADER_BYTES
        return min(self.chunk_size, 1 << (room.bit_length() - 1))


Sided = TypeVar("Sided", Sender, Receiver)


class Connection:
    """One end of one connection."""

    def __init__(self, side: Side, limits: Limits, *, now: float, heartbeat: float = 20.0) -> None:
        if limits.chunk_size + frames.HEADER_BYTES > limits.max_message:
            raise UsageError("chunk_size and a header do not fit into max_message")
        self.side = side
        self.limits = limits
        self.peer: Limits | None = None
        self.heartbeat = heartbeat
        self.outbox: deque[Message] = deque()
        self.senders: dict[int, Sender] = {}
        self.receivers: dict[int, Receiver] = {}
        self.welcomed = False
        self.going_away = False
        self._greeted = False
        self._born = self._heard = self._said = now
        self._last_ping = now
        self._ping_id = 0
        self._own_handle = self._peer_handle = 0
        self._turns: deque[int] = deque()
        self._damaged_early: set[int] = set()
        self._kinds = messages.FROM_CLIENT if side is Side.SERVER else messages.FROM_SERVER

    # -- hello -----------------------------------------------------------------------------------------------------

    def hello(self, hello: messages.Hello) -> None:
        """Client: say hello, first of all."""
        self._greeted = True
        self.outbox.append(hello)

    def welcome(self, welcome: messages.Welcome) -> None:
        """Server: answer hello; from now on offers may come and go."""
        self.welcomed = True
        self.outbox.append(welcome)

    # -- what comes ------------------------------------------------------------------------------------------------

    def receive_text(self, text: str, now: float) -> list[Event]:
        """Take a text message and return what happened.

        Raises `ProtocolViolation`: the driver closes the connection with its code and reason.
        """
        self._heard = now
        if len(text) > self.limits.max_message:
            raise ProtocolViolation("message too big", 1009)
        message = messages.decode(text, self._kinds)
        if self.side is Side.SERVER:
            self._expect_hello(message)
        elif not self.welcomed and not isinstance(message, messages.Welcome | messages.GoingAway):
            raise ProtocolViolation("expected welcome first")
        return self._take(message, now)

    def receive_bytes(self, data: bytes, now: float) -> list[Event]:
        """Take a binary message and return what happened. Raises as `receive_text` does."""
        self._heard = now
        if not self.welcomed:
            raise ProtocolViolation("binary message before hello", 1003)
        if len(data) > self.limits.max_message:
            raise ProtocolViolation("message too big", 1009)
        chunk = frames.decode(data)
        receiver = self._receiver(chunk.handle)
        return self._take_chunk(receiver, chunk, now) if receiver else []

    def _expect_hello(self, message: Message) -> None:
        is_hello = isinstance(message, messages.Hello)
        if is_hello == self._greeted:
            raise ProtocolViolation("hello twice" if is_hello else "expected hello first")
        if not is_hello and not self.welcomed:
            raise ProtocolViolation("message before welcome")
        self._greeted = True

    def _take_chunk(self, receiver: Receiver, chunk: frames.Chunk, now: float) -> list[Event]:
        if chunk.handle in self._damaged_early:
            return []
        try:
            taken = receiver.on_chunk(chunk, now)
        except TransferAborted as aborted:
            return self._abort_receiver(receiver, aborted)
        if taken is Taken.KEPT:
            return [events.ChunkKept(receiver, chunk)]
        if taken is Taken.DAMAGED:
            if receiver.state is State.OFFERED:  # a nack may not come before the accept
                self._damaged_early.add(chunk.handle)
                return []
            return self.rewind(receiver, receiver.received, "checksum")
        return []

    def _take(self, message: Message, now: float) -> list[Event]:
        match message:
            case messages.Hello():
                self.peer = self._peer_limits(message.max_message, message.chunk_size, message.early_data)
                return [events.Greeted(message)]
            case messages.Welcome():
                return self._on_welcome(message)
            case messages.Ping():
                self.outbox.append(messages.Pong(id=message.id))
            case messages.GoingAway():
                self.going_away = True
                return [events.ServerGoingAway(message)]
            case messages.Offer():
                return self._on_offer(message, now)
            case messages.Abort():
                return self._on_abort(message)
            case messages.Finish():
                receiver = self._receiver(message.handle)
                if receiver and message.handle not in self._damaged_early and receiver.on_finish(message):
                    return [events.Finished(receiver)]
            case _:
                return self._take_answer(message, now)
        return []

    def _take_answer(self, message: Message, now: float) -> list[Event]:
        """Take what a receiver says to our sender."""
        match message:
            case messages.Accept() if sender := self._sender(message.handle, message.transfer):
                sender.on_accept(message, now)
                return [events.Accepted(sender)]
            case messages.Reject() if sender := self._sender(message.handle, message.transfer):
                sender.on_reject(message)
                return self._ended(sender, events.Rejected(sender, message))
            case messages.Ack() if sender := self._sender(message.handle):
                return [events.Acked(sender, sender.on_ack(message, now))]
            case messages.Nack() if sender := self._sender(message.handle):
                sender.on_nack(message)
            case messages.Done() if sender := self._sender(message.handle, message.transfer):
                sender.on_done(message)
                return self._ended(sender, events.Completed(sender, message.sha256, message.payload))
        return []

    def _on_welcome(self, message: messages.Welcome) -> list[Event]:
        if self.welcomed:
            raise ProtocolViolation("welcome twice")
        self.peer = self._peer_limits(message.max_message, message.chunk_size, message.early_data)
        self.heartbeat = message.heartbeat
        self.welcomed = True
        return [events.Welcomed(message)]

    @staticmethod
    def _peer_limits(max_message: int, chunk_size: int, early_data: int) -> Limits:
        if chunk_size + frames.HEADER_BYTES > max_message:
            raise ProtocolViolation("chunk_size does not fit into max_message")
        return Limits(max_message=max_message, chunk_size=chunk_size, early_data=early_data)

    def _on_offer(self, offer: Offer, now: float) -> list[Event]:
        if offer.handle <= self._peer_handle:
            raise ProtocolViolation("handle does not rise")
        self._peer_handle = offer.handle
        waiting = sum(receiver.state is State.OFFERED for receiver in self.receivers.values())
        if waiting >= MAX_UNANSWERED_OFFERS:
            raise ProtocolViolation("too many unanswered offers", 4429)
        early = self.limits.early_data if offer.chunk_size <= self.limits.chunk_size else -1
        receiver = Receiver(offer, early_data=early, now=now)
        self.receivers[offer.handle] = receiver
        return [events.Offered(receiver)]

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
        if message.handle > max(self._own_handle, self._peer_handle):
            raise ProtocolViolation("handle was never offered")
        return []

    def _receiver(self, handle: int) -> Receiver | None:
        """Return the live receiver of a handle, None where it is no longer live."""
        if handle > self._peer_handle:
            raise ProtocolViolation("handle was never offered")
        return self.receivers.get(handle)

    def _sender(self, handle: int, transfer: str | None = None) -> Sender | None:
        if handle > self._own_handle:
            raise ProtocolViolation("handle was never offered")
        sender = self.senders.get(handle)
        if sender and transfer is not None and sender.transfer != transfer:
            raise ProtocolViolation("handle and transfer do not match")
        return sender

    def _ended(self, machine: Sided, event: Event) -> list[Event]:
        self._forget(machine)
        return [event]

    def _forget(self, machine: Sender | Receiver) -> None:
        if isinstance(machine, Sender):
            self.senders.pop(machine.handle, None)
        else:
            self.receivers.pop(machine.handle, None)
            self._damaged_early.discard(machine.handle)

    # -- sending ---------------------------------------------------------------------------------------------------

    def unanswered(self) -> int:
        """Return how many of our offers wait for an answer; at most 16 may."""
        return sum(sender.state is State.OFFERED for sender in self.senders.values())

    def can_offer(self) -> bool:
        """Return whether one more offer may be sent now."""
        return self.welcomed and not self.going_away and self.unanswered() < MAX_UNANSWERED_OFFERS

    def offer(self, offer: Offer, *, first: bool, now: float) -> Sender:
        """Send an offer; its handle and chunk size are set here. Returns the machine that sends the payload.

        `first`: this transfer was never offered before, so that a small payload may go as early data (section 2).
        Raises `UsageError` before the welcome, and where 16 offers are unanswered.
        """
        if self.peer is None or not self.can_offer() or self._own_handle >= MAX_HANDLE:
            raise UsageError("cannot offer now")
        self._own_handle += 1
        largest = min(offer.chunk_size, self.peer.fitting())
        offer = replace(offer, handle=self._own_handle, chunk_size=largest)
        early = first and offer.size is not None and 0 < offer.size <= min(self.peer.early_data, offer.chunk_size)
        sender = Sender(offer, early=early, now=now)
        self.senders[offer.handle] = sender
        self._turns.append(offer.handle)
        self.outbox.append(offer)
        return sender

    def next_turn(self) -> Sender | None:
        """Return the sender whose turn it is: one that has a chunk or `finish` to send, each in its turn.

        Call it again after every chunk, so that a small payload passes between the chunks of a large one.
        """
        if self.going_away:
            return None
        for _ in range(len(self._turns)):
            sender = self.senders.get(self._turns[0])
            if sender is None:
                self._turns.popleft()
                continue
            self._turns.rotate(-1)
            if sender.next_span() is not None or sender.finish_due():
                return sender
        return None

    def finish(self, sender: Sender, sha256: str | None) -> None:
        """Send `finish`. `sha256`: of the whole payload, None where it is not known."""
        self.outbox.append(sender.finish(sha256))

    def abort(self, machine: Sender | Receiver, code: str, message: str = "", *, final: bool) -> None:
        """End a transfer of either direction, or detach it, and tell the peer."""
        self.outbox.append(machine.abort(code, message, final=final))
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
    ) -> list[Event]:
        """Accept an offer from byte `stored` on. Events: a `Rewound` where its early data came damaged."""
        answer = receiver.accept(
            chunk_size=self.limits.chunk_size, stored=stored, terms=terms, now=now, expires=expires, hold=hold
        )
        self.outbox.append(answer)
        if receiver.handle in self._damaged_early:
            self._damaged_early.discard(receiver.handle)
            if receiver.received == 0:
                return self.rewind(receiver, 0, "checksum")
        return []

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
        """Send a nack, or an abort instead of the third one of the same chunk."""
        answer = receiver.lost(seq, code)
        self.outbox.append(answer)
        if isinstance(answer, Abort):
            return self._ended(receiver, events.ReceiverAborted(receiver, answer))
        return [events.Rewound(receiver)]

    def _abort_receiver(self, receiver: Receiver, aborted: TransferAborted) -> list[Event]:
        answer = receiver.abort(aborted.code, aborted.message, final=aborted.final)
        self.outbox.append(answer)
        return self._ended(receiver, events.ReceiverAborted(receiver, answer))

    def queue_acks(self, now: float) -> None:
        """Put every ack that is due into the outbox."""
        for receiver in self.receivers.values():
            if (ack := receiver.next_ack(now)) is not None:
                self.outbox.append(ack)

    # -- time ------------------------------------------------------------------------------------------------------

    def sent(self, now: float) -> None:
        """Note that a message went out."""
        self._said = now

    def tick(self, now: float) -> list[Event]:
        """Do what time alone asks for; call it a few times a heartbeat, and at `wake_at`."""
        if self.side is Side.SERVER and not self._greeted and now - self._born >= HELLO_SECONDS:
            return [events.HelloMissing()]
        if now - self._heard >= SILENT_HEARTBEATS * self.heartbeat:
            return [events.PeerSilent()]
        if self.side is Side.SERVER and self.welcomed:
            silent = min(self._heard, self._said)
            if now - max(silent, self._last_ping) >= self.heartbeat:
                self._last_ping = now
                self._ping_id += 1
                self.outbox.append(messages.Ping(id=self._ping_id))
        return []

    def wake_at(self) -> float:
        """Return the monotonic time at which `tick` or a receiver wants to be asked again."""
        if self.side is Side.SERVER and not self._greeted:
            return self._born + HELLO_SECONDS
        silence = self._heard + SILENT_HEARTBEATS * self.heartbeat
        ping = max(min(self._heard, self._said), self._last_ping) + self.heartbeat
        receivers = (at for receiver in self.receivers.values() if (at := receiver.wake_at()) is not None)
        return min(silence, ping if self.side is Side.SERVER and self.welcomed else silence, *receivers, silence)
