"""What a `Connection` tells its driver: one frozen dataclass an event, each saying what the driver does next."""

from __future__ import annotations

from dataclasses import dataclass

from delivery.protocol.frames import Chunk
from delivery.protocol.messages import Abort, GoingAway, Hello, Reject, Welcome
from delivery.protocol.receiver import Receiver
from delivery.protocol.sender import Sender


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened on the connection."""


@dataclass(frozen=True, slots=True)
class Greeted(Event):
    """Server: the client said hello. Check its login, then call `welcome`."""

    hello: Hello


@dataclass(frozen=True, slots=True)
class Welcomed(Event):
    """Client: offers may be made from now on."""

    welcome: Welcome


@dataclass(frozen=True, slots=True)
class Offered(Event):
    """Decide, then call `accept`, `reject` or `done` on the connection."""

    receiver: Receiver


@dataclass(frozen=True, slots=True)
class ChunkKept(Event):
    """Keep the data until it is stored, and ask the receiver for its `next_run`."""

    receiver: Receiver
    chunk: Chunk


@dataclass(frozen=True, slots=True)
class Finished(Event):
    """Nothing more will come: store the rest, then check the digest."""

    receiver: Receiver


@dataclass(frozen=True, slots=True)
class ReceiverAborted(Event):
    """The sender ended the transfer, or detached it where `message.final` is false."""

    receiver: Receiver
    message: Abort


@dataclass(frozen=True, slots=True)
class Rewound(Event):
    """We sent a nack: forget what was kept from chunk `receiver.received` on."""

    receiver: Receiver


@dataclass(frozen=True, slots=True)
class Accepted(Event):
    """Read on from `sender.next_span`."""

    sender: Sender


@dataclass(frozen=True, slots=True)
class Rejected(Event):
    sender: Sender
    message: Reject


@dataclass(frozen=True, slots=True)
class Acked(Event):
    """The ack moved (`progressed`) or credit or `received` did."""

    sender: Sender
    progressed: bool


@dataclass(frozen=True, slots=True)
class Completed(Event):
    """The receiver has stored and checked everything."""

    sender: Sender
    sha256: str
    payload: str | None


@dataclass(frozen=True, slots=True)
class SenderAborted(Event):
    """The receiver ended the transfer, or detached it where `message.final` is false."""

    sender: Sender
    message: Abort


@dataclass(frozen=True, slots=True)
class ServerGoingAway(Event):
    """Client: send nothing more; the server closes in a moment."""

    message: GoingAway


@dataclass(frozen=True, slots=True)
class PeerSilent(Event):
    """Nothing at all came for 2.5 heartbeats: drop the connection."""


@dataclass(frozen=True, slots=True)
class HelloMissing(Event):
    """Server: no hello in time: close with 4408."""
