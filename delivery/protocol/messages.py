"""Control messages: frozen dataclasses, strict decoding, encoding (PROTOCOL sections 1 to 6).

A message knows its own members and their ranges. `connection` decides which message is allowed when.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from delivery.errors import ProtocolViolation, UsageError
from delivery.protocol import rules
from delivery.protocol.frames import CHUNK_SIZE_MIN, HEADER_BYTES
from delivery.protocol.rules import Member, optional, required

MAX_CONTROL_BYTES = 65_536
DEFAULT_CHUNK_SIZE = 262_144

# Made once: making one takes longer than encoding a short message with it.
_encode_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A control message. `TYPE` is its `type` on the wire, `MEMBERS` its members and their rules."""

    TYPE: ClassVar[str] = ""
    MEMBERS: ClassVar[Mapping[str, Member]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Message):
    TYPE: ClassVar[str] = "hello"
    MEMBERS: ClassVar[Mapping[str, Member]] = {
        "client": required(rules.text(1, 64)),
        "max_message": required(rules.integer(rules.MIN_MAX_MESSAGE)),
        "receive": optional(rules.boolean),
        "chunk_size": optional(rules.chunk_size),
        "early_data": optional(rules.integer()),
        "token": optional(rules.nullable(rules.text(0, 8192))),
        "groups": optional(rules.texts),
    }
    client: str
    max_message: int
    receive: bool = False
    chunk_size: int = 0  # not given: the default, or less where that would not fit into `max_message`
    early_data: int = 0
    token: str | None = dataclasses.field(default=None, repr=False)
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.chunk_size == 0:
            room = max(self.max_message - HEADER_BYTES, CHUNK_SIZE_MIN)
            object.__setattr__(self, "chunk_size", min(DEFAULT_CHUNK_SIZE, 1 << (room.bit_length() - 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome(Message):
    TYPE: ClassVar[str] = "welcome"
    MEMBERS: ClassVar[Mapping[str, Member]] = {
        "version": required(rules.integer(1)),
        "session": required(rules.text(1, 128)),
        "user": required(rules.nullable(rules.text(0, 255))),
        "groups": optional(rules.texts),
        "max_message": required(rules.integer(rules.MIN_MAX_MESSAGE)),
        "chunk_size": required(rules.chunk_size),
        "window": required(rules.integer(1)),
        "early_data": optional(rules.integer()),
        "heartbeat": required(rules.positive_seconds),
        "retry": optional(rules.retry),
    }
    version: int = 1
    session: str
    user: str | None
    groups: tuple[str, ...] = ()
    max_message: int
    chunk_size: int
    window: int
    early_data: int = 0
    heartbeat: float = 20.0
    retry: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"initial": 0.5, "max": 10.0})


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer(Message):
    """An upload's offer has `to`; a delivery's has `payload`, `from` (here `sender`) and `expires`."""

    TYPE: ClassVar[str] = "offer"
    MEMBERS: ClassVar[Mapping[str, Member]] = {
        "transfer": required(rules.identifier),
        "handle": required(rules.handle),
        "name": required(rules.text(0, 255)),
        "size": required(rules.nullable(rules.integer())),
        "content_type": optional(rules.text(0, 255)),
        "chunk_size": required(rules.chunk_size),
        "sha256": optional(rules.nullable(rules.digest)),
        "meta": optional(rules.meta),
    }
    transfer: str
    handle: int
    name: str
    size: int | None
    content_type: str = "application/octet-stream"
    chunk_size: int
    sha256: str | None = None
    meta: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadOffer(Offer):
    MEMBERS: ClassVar[Mapping[str, Member]] = {**Offer.MEMBERS, "to": optional(rules.texts)}
    to: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryOffer(Offer):
    MEMBERS: ClassVar[Mapping[str, Member]] = {
        **Offer.MEMBERS,
        "payload": required(rules.identifier),
        "from": optional(rules.nullable(rules.text(0, 255)), field="sender"),
        "expires": optional(rules.nullable(rules.text(0, 64))),
    }
    payload: str
    sender: str | None = None
    expires: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accept(Message):
    TYPE: ClassVar[str] = "accept"
    MEMBERS: ClassVar[Mapping[str, Member]] = {
        "transfer": required(rules.identifier),
        "handle": required(rules.handle),
        "chunk_size": required(rules.chunk_size),
        "seq": required(rules.seq),
        "limit": required(rules.integer()),
        "expires": optional(rules.nullable(rules.text(0, 64))),
    }
    transfer: str
    handle: int
    chunk_size: int
    seq: int
    limit: int
    expires: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject(Message):
    TYPE: ClassVar[str] = "reject"
    MEMBERS: ClassVar[Mapping[str, Member]] = {
        "transfer": required(rules.identifier),
        "handle": required(rules.handle),
        "code": required(rules.text(1, 64)),
        "message": optional(rules.log_text),
        "max_size": optional(rules.nullable(rules.integer()), when_none="omit"),
        "retry_after": optional(rules.nullable(rules.seconds), when_none="omit"),
    }
    transfer: str
    handle: int
    code: str
    message: str = ""
    max_size: int | None = None
    retry_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack(Message):
    TYPE: ClassVar[str] = "ack"
    MEMBERS: ClassVar[Mapping[str, Member]] = {
        "handle": required(rules.handle),
        "seq": required(rules.seq),
        "received": required(rules.seq),
        "limit": required(rules.integer()),
    }
    handle: int
    seq: int
    received: int
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Nack(Message):
    TYPE: ClassVar[str] = "nack"
    MEMBERS: ClassVar[Mapping[str, Member]] = {
        "handle": required(rules.handle),
        "seq": required(rules.seq),
        "code": required(rules.nack_code),
    }
    handle: int
    seq: int
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish(Message):
    TYPE: ClassVar[str] = "finish"
    MEMBERS: ClassVar[Mapping[str, Member]] = {
        "handle": required(rules.handle),
        "chunks": required(rules.seq),
        "size": required(rules.integer()),
        "sha256": optional(rules.nullable(rules.digest)),
    }
    handle: int
    chunks: int
    size: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Message):
    """`payload` is the stored payload's id; a client's `done` for a delivery has none."""

    TYPE: ClassVar[str] = "done"
    MEMBERS: ClassVar[Mapping[str, Member]] = {
        "transfer": required(rules.identifier),
        "handle": required(rules.handle),
        "size": required(rules.integer()),
        "sha256": required(rules.digest),
        "payload": optional(rules.nullable(rules.identifier), when_none="omit"),
    }
    transfer: str
    handle: int
    size: int
    sha256: str
    payload: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort(Message):
    TYPE: ClassVar[str] = "abort"
    MEMBERS: ClassVar[Mapping[str, Member]] = {
        "transfer": required(rules.identifier),
        "handle": required(rules.handle),
        "code": required(rules.text(1, 64)),
        "message": optional(rules.log_text),
        "final": required(rules.boolean),
        "retry_after": optional(rules.nullable(rules.seconds), when_none="omit"),
    }
    transfer: str
    handle: int
    code: str
    message: str = ""
    final: bool
    retry_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping(Message):
    TYPE: ClassVar[str] = "ping"
    MEMBERS: ClassVar[Mapping[str, Member]] = {"id": required(rules.integer())}
    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pong(Message):
    TYPE: ClassVar[str] = "pong"
    MEMBERS: ClassVar[Mapping[str, Member]] = {"id": required(rules.integer())}
    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GoingAway(Message):
    TYPE: ClassVar[str] = "going_away"
    MEMBERS: ClassVar[Mapping[str, Member]] = {
        "reason": required(rules.text(1, 64)),
        "retry_after": optional(rules.nullable(rules.seconds)),
    }
    reason: str
    retry_after: float | None = None


_BOTH: tuple[type[Message], ...] = (Accept, Reject, Ack, Nack, Finish, Done, Abort, Ping, Pong)


def _by_type(*kinds: type[Message]) -> Mapping[str, type[Message]]:
    return {kind.TYPE: kind for kind in (*kinds, *_BOTH)}


FROM_CLIENT = _by_type(Hello, UploadOffer)
FROM_SERVER = _by_type(Welcome, DeliveryOffer, GoingAway)


def encode(message: Message) -> str:
    """Return the JSON text of a message. Raises `UsageError` where it is longer than a control message may be."""
    return _text(message, _members(message))


def _members(message: Message) -> dict[str, Any]:
    members: dict[str, Any] = {"type": message.TYPE}
    for name, member in message.MEMBERS.items():
        value = getattr(message, member.field or name)
        if value is not None or member.when_none != "omit":
            members[name] = value
    return members


def _text(message: Message, members: Mapping[str, Any]) -> str:
    text = _encode_json(members)
    if len(text) > MAX_CONTROL_BYTES:  # ASCII: as many bytes as characters
        raise UsageError(f"{message.TYPE} of {len(text)} bytes, a control message has at most {MAX_CONTROL_BYTES}")
    return text


def check(message: Message, kinds: Mapping[str, type[Message]]) -> None:
    """Raise `UsageError` where the peer would refuse a message of ours; `kinds` is what our side may say.

    Does what `decode(encode(message))` would, without parsing what was just written.
    """
    members = _members(message)
    text = _text(message, members)
    try:
        if (kind := kinds.get(message.TYPE)) is None:
            raise ProtocolViolation("unknown control message")
        parsed = {name: list(value) if type(value) is tuple else value for name, value in members.items()}
        if "\\u" in text:
            rules.check_strings(parsed)
        _checked(kind, parsed)
    except ProtocolViolation as violation:
        raise UsageError(violation.reason) from None


def decode(text: str, kinds: Mapping[str, type[Message]]) -> Message:
    """Return the message that `text` holds; `kinds` is `FROM_CLIENT` or `FROM_SERVER`.

    Unknown members are ignored. Raises `ProtocolViolation` (4400) for everything else that section 1 forbids.
    """
    members = rules.parse_object(text, MAX_CONTROL_BYTES)
    name = members.get("type")
    if not isinstance(name, str):
        raise ProtocolViolation("control message without a type")
    if (kind := kinds.get(name)) is None:
        raise ProtocolViolation("unknown control message")
    return kind(**_checked(kind, members))


def _checked(kind: type[Message], members: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, member in kind.MEMBERS.items():
        if name in members:
            try:
                values[member.field or name] = member.rule(members[name])
            except ValueError as error:
                raise ProtocolViolation(f"{kind.TYPE}.{name}: {error}") from None
        elif member.required:
            raise ProtocolViolation(f"{kind.TYPE} without {name}")
    return values
