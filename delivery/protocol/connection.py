"""What belongs to one whole connection: greeting, heartbeats, going away (PROTOCOL sections 1, 5 and 6).

The same class serves both ends; `Side` is all it knows of where it runs. Feed it what comes with `receive_text` and
`receive_bytes`, act on the events that they return, send what `outbox` holds, and then chunks in the order that
`next_turn` gives. Time comes in as monotonic seconds.
"""

from __future__ import annotations

from delivery.errors import MessagesLost, ProtocolViolation, UsageError
from delivery.protocol import events, frames, messages
from delivery.protocol.codes import GOING_AWAY_CODES
from delivery.protocol.events import Event
from delivery.protocol.exchange import Exchange
from delivery.protocol.heartbeat import Heartbeat
from delivery.protocol.limits import MAX_UNANSWERED_OFFERS as MAX_UNANSWERED_OFFERS
from delivery.protocol.limits import Limits as Limits
from delivery.protocol.limits import Side as Side
from delivery.protocol.limits import announced
from delivery.protocol.loss_probe import LossProbe
from delivery.protocol.messages import MAX_CONTROL_BYTES, Message

HELLO_SECONDS = 5.0
# A driver that cannot write should stop reading. If it does not, a peer that floods it with pings gets no more answers.
MOST_QUEUED_PONGS = 256


class Connection(Exchange):
    """One end of one connection. `heartbeat`: seconds, as the server's welcome says."""

    def __init__(self, side: Side, limits: Limits, *, now: float, heartbeat: float = 20.0) -> None:
        super().__init__(side, limits)
        self._greeted = False
        self._hello_until = now + HELLO_SECONDS
        self._pulse = Heartbeat(heartbeat, now=now, server=side is Side.SERVER)
        self._probe = LossProbe()

    @property
    def heartbeat(self) -> float:
        return self._pulse.interval

    # -- hello -----------------------------------------------------------------------------------------------------

    def hello(self, hello: messages.Hello) -> None:
        """Client: say hello, first of all."""
        if self.side is not Side.CLIENT or self._greeted:
            raise UsageError("hello is said once, by the client")
        self._greeted = True
        self.outbox.append(hello)

    def welcome(self, welcome: messages.Welcome) -> None:
        """Server: answer hello; from now on offers may come and go."""
        if self.side is not Side.SERVER or self.peer is None or self.welcomed:
            raise UsageError("welcome is said once, by the server, after hello")
        self._pulse.interval = welcome.heartbeat
        self._pulse.pings = True
        self.welcomed = True
        self.outbox.append(welcome)

    # -- what comes ------------------------------------------------------------------------------------------------

    def receive_text(self, text: str, now: float) -> list[Event]:
        """Take a text message and return what happened.

        Raises `ProtocolViolation`: the driver closes the connection with its code and reason.
        """
        self._pulse.heard = now
        if self._discards():
            return []
        if _bytes_exceed(text, self._largest):
            raise ProtocolViolation("message too big", 1009)
        message = messages.decode(text, self._theirs)
        if not self.welcomed:
            self._expect_greeting(message)
        elif isinstance(message, messages.Hello | messages.Welcome):
            raise ProtocolViolation(f"{message.TYPE} twice")
        return self._take(message, now)

    def receive_bytes(self, data: bytes, now: float) -> list[Event]:
        """Take a binary message and return what happened. Raises as `receive_text` does."""
        self._pulse.heard = now
        if self._discards():
            return []
        if len(data) > self._largest:
            raise ProtocolViolation("message too big", 1009)
        if not self.welcomed:
            early = self.side is Side.SERVER and not self._greeted
            raise ProtocolViolation(*(("binary message before hello", 1003) if early else ("chunk before welcome",)))
        chunk = frames.decode(data)
        receiver = self.receivers.get(chunk.handle)
        if receiver is None:
            self._incoming.check(chunk.handle)
            return []
        return self._take_chunk(receiver, chunk, now)

    def heard(self, at: float) -> None:
        """Note that bytes came at this monotonic time, of a message that need not be complete (section 5)."""
        self._pulse.heard = max(self._pulse.heard, at)

    @property
    def _largest(self) -> int:
        """The largest message in bytes that the peer may send now: a server takes no more than that before `welcome`."""
        if self.side is Side.SERVER and not self.welcomed:
            return MAX_CONTROL_BYTES
        return self.limits.max_message

    def _discards(self) -> bool:
        """Return whether we said going_away: what still comes until the close is answered has no effect (section 6)."""
        return self.going_away and self.side is Side.SERVER

    def _expect_greeting(self, message: Message) -> None:
        if self.side is Side.CLIENT:
            if not isinstance(message, messages.Welcome | messages.GoingAway):
                raise ProtocolViolation("expected welcome first")
        elif self._greeted:
            raise ProtocolViolation("message before welcome")
        elif not isinstance(message, messages.Hello):
            raise ProtocolViolation("expected hello first")
        else:
            self._greeted = True

    def _take(self, message: Message, now: float) -> list[Event]:
        match message:
            case messages.Hello():
                self.peer = announced(message)
                return [events.Greeted(message)]
            case messages.Welcome():
                self.peer = announced(message)
                self._pulse.interval = message.heartbeat
                self._pulse.pings = True
                self.welcomed = True
                return [events.Welcomed(message)]
            case messages.GoingAway():
                self.going_away = True
                return [events.ServerGoingAway(message)]
            case messages.Ping():
                if len(self.outbox) < MOST_QUEUED_PONGS:
                    self.queue_acks(now, at_once=True)
                    self.outbox.append(messages.Pong(id=message.id))
                return []
            case messages.Pong():
                if self._probe.on_pong(message.id, now):
                    raise MessagesLost("messages lost on the way")
                return []
            case _:
                return self._take_message(message, now)

    # -- going away ------------------------------------------------------------------------------------------------

    def leave(self, reason: str, retry_after: float | None = None) -> None:
        """Server: say that the connection closes in a moment, after the last acks; what still comes is discarded."""
        if self.side is not Side.SERVER or reason not in GOING_AWAY_CODES:
            raise UsageError(f"cannot go away for {reason}")
        self.going_away = True
        self._pulse.pings = False
        self.outbox.append(messages.GoingAway(reason=reason, retry_after=retry_after))

    # -- time ------------------------------------------------------------------------------------------------------

    def sent(self, now: float) -> None:
        """Note that a message went out."""
        self._pulse.said = now

    def tick(self, now: float) -> list[Event]:
        """Do what time alone asks for; call it a few times a heartbeat, and at `wake_at`."""
        if self._hello_missing and now >= self._hello_until:
            return [events.HelloMissing()]
        if self._pulse.silent(now):
            return [events.PeerSilent()]
        if (ping := self._pulse.ping(now)) is not None:
            self.outbox.append(ping)
        if not self.going_away and self._probe.ping_due(self.senders.values(), now):
            behind = self._pulse.next_ping()
            self._probe.pinged(behind.id)
            self.outbox.append(behind)
        return []

    def wake_at(self) -> float:
        """Return the monotonic time at which `tick` or a receiver wants to be asked again."""
        if self._hello_missing:
            return self._hello_until
        times = (receiver.wake_at() for receiver in self.receivers.values())
        own = (self._pulse.wake_at(), self._probe.wake_at(self.senders.values()))
        return min([*own, *(at for at in times if at is not None)])

    @property
    def _hello_missing(self) -> bool:
        return self.side is Side.SERVER and not self._greeted


def _bytes_exceed(text: str, limit: int) -> bool:
    """Return whether `text` is longer than `limit` bytes of UTF-8, which has at most 4 for a character."""
    return 4 * len(text) > limit and len(text.encode(errors="surrogatepass")) > limit
