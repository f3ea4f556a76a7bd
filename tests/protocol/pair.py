"""Two connections that talk to each other in memory: what one puts into its outbox, the other takes at once."""

from __future__ import annotations

from typing import Any

from delivery.protocol import frames, messages
from delivery.protocol.connection import Connection, Limits, Side
from delivery.protocol.events import Event, Offered
from delivery.protocol.messages import DeliveryOffer, Hello, UploadOffer, Welcome
from delivery.protocol.receiver import Receiver, Terms
from delivery.protocol.sender import Sender

from .messages_of import CHUNK, PAYLOAD, TRANSFER

TERMS = Terms(window=8 * CHUNK, segment_size=4 * CHUNK, max_size=20 * CHUNK)
CLIENT = Limits(max_message=70_000, chunk_size=CHUNK, early_data=1_000)
SERVER = Limits(max_message=65_548, chunk_size=2 * CHUNK, early_data=2_000)


class Pair:
    """A client and a server. `send` and `pump` return the events that the other side saw."""

    def __init__(self, *, greeted: bool = True) -> None:
        self.client = Connection(Side.CLIENT, CLIENT, now=0.0)
        self.server = Connection(Side.SERVER, SERVER, now=0.0)
        if greeted:
            self.client.hello(hello())
            self.pump(self.client)
            self.server.welcome(welcome())
            self.pump(self.server)

    def other(self, end: Connection) -> Connection:
        return self.server if end is self.client else self.client

    def pump(self, end: Connection, now: float = 0.0) -> list[Event]:
        """Bring the other side what `end` has to say."""
        happened: list[Event] = []
        while end.outbox:
            happened += self.other(end).receive_text(messages.encode(end.outbox.popleft()), now)
        return happened

    def chunk(self, sender: Sender, end: Connection, data: bytes, *, damaged: bool = False) -> list[Event]:
        """Send the next chunk of `sender`."""
        seq = sender.next_seq
        crc = frames.checksum(data) ^ damaged
        sender.chunk_sent(seq, 0.0)
        return self.other(end).receive_bytes(frames.encode(sender.handle, seq, data, crc), 0.0)

    def offered(self, end: Connection, *, first: bool = False, **members: Any) -> tuple[Sender, Receiver]:
        """Offer from `end`; return both sides' machines."""
        sender = end.offer(an_offer(end.side, **members), first=first, now=0.0)
        (event,) = self.pump(end)
        assert isinstance(event, Offered)
        return sender, event.receiver

    def accepted(self, end: Connection, *, stored: int = 0, **members: Any) -> tuple[Sender, Receiver]:
        """Offer from `end`, and have it accepted."""
        sender, receiver = self.offered(end, **members)
        self.other(end).accept(receiver, stored=stored, terms=TERMS, now=0.0)
        self.pump(self.other(end))
        return sender, receiver


def an_offer(side: Side, **members: Any) -> UploadOffer | DeliveryOffer:
    common = {"transfer": TRANSFER, "handle": 1, "name": "n", "size": 3 * CHUNK, "chunk_size": CHUNK, **members}
    return UploadOffer(**common) if side is Side.CLIENT else DeliveryOffer(payload=PAYLOAD, **common)


def hello(limits: Limits = CLIENT) -> Hello:
    return Hello(client="c", max_message=limits.max_message, chunk_size=limits.chunk_size, early_data=limits.early_data)


def welcome(limits: Limits = SERVER, *, heartbeat: float = 10.0) -> Welcome:
    return Welcome(
        session="s",
        user="user:1",
        max_message=limits.max_message,
        chunk_size=limits.chunk_size,
        window=TERMS.window,
        early_data=limits.early_data,
        heartbeat=heartbeat,
    )
