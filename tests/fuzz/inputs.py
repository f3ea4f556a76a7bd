"""What one fuzz input means: a first byte that picks the decoder, and what that is fed.

Only `ProtocolViolation` may escape a decoder. Shared by the fuzzer, which looks for inputs, and the test that replays
the ones it kept.
"""

from __future__ import annotations

from pathlib import Path

from delivery.errors import ProtocolViolation, Refused
from delivery.protocol import events, frames, messages
from delivery.protocol.connection import Connection, Limits, Side
from delivery.protocol.messages import Welcome
from delivery.protocol.receiver import Receiver, Terms

CORPUS = Path(__file__).parent / "corpus"
LIMITS = Limits(max_message=65_548, chunk_size=4096, early_data=8192)
TERMS = Terms(window=16_384, segment_size=8192, max_size=40_960)
HELLO = '{"type":"hello","client":"c","max_message":65548}'
SEPARATOR = b"\n"
BINARY = 0xFF  # begins a binary message; no UTF-8 does
SECOND = 1.0


def take(data: bytes) -> None:
    """Feed one input to its decoder. Raises what should never come out."""
    if not data:
        return
    which, rest = data[0] % 4, data[1:]
    try:
        if which == 0:
            messages.decode(rest.decode(errors="surrogateescape"), messages.FROM_CLIENT)
        elif which == 1:
            messages.decode(rest.decode(errors="surrogateescape"), messages.FROM_SERVER)
        elif which == 2:
            frames.decode(rest).intact()
        else:
            _converse(rest)
    except ProtocolViolation as violation:
        if not 0 < len(violation.reason.encode()) <= 123:
            raise AssertionError("a reason that does not fit into a close frame") from violation


def _converse(data: bytes) -> None:
    """Say one message after the other to a welcomed server, whose driver accepts and stores everything at once."""
    core = Connection(Side.SERVER, LIMITS, now=0.0)
    core.receive_text(HELLO, 0.0)
    core.welcome(Welcome(session="s", user="user:1", max_message=65_548, chunk_size=4096, window=16_384))
    now = 0.0
    for message in data.split(SEPARATOR):
        now += SECOND
        if message[:1] == bytes([BINARY]):
            happened = core.receive_bytes(_chunk(message[1:]), now)
        else:
            happened = core.receive_text(message.decode(errors="surrogateescape"), now)
        _drive(core, happened, now)
        core.outbox.clear()


def _chunk(message: bytes) -> bytes:
    """Turn `handle, seq, length / 16, any` into a chunk with the right checksum: chance would not find one."""
    if len(message) < 4:
        return message
    handle, seq, length = message[0], message[1], message[2] * 256 + message[3]
    return frames.encode(handle, seq, bytes(length))


def _drive(core: Connection, happened: list[events.Event], now: float) -> None:
    for event in happened:
        if isinstance(event, events.Offered) and event.receiver.live:
            try:
                core.accept(event.receiver, stored=0, terms=TERMS, now=now)
            except Refused as refused:
                core.reject(event.receiver, refused.code, max_size=refused.max_size)
    for receiver in list(core.receivers.values()):
        while receiver.next_run(now) is not None:
            pass
        receiver.on_stored(receiver.received)
        if receiver.complete:
            _complete(core, receiver)
    core.queue_acks(now)
    if any(isinstance(event, events.PeerSilent) for event in core.tick(now)):
        raise AssertionError("silent while it talks")


def _complete(core: Connection, receiver: Receiver) -> None:
    digests = receiver.expected_digests()
    if len(digests) > 1:
        core.abort(receiver, "digest", final=True)
    else:
        core.done(receiver, size=receiver.size or 0, sha256=next(iter(digests), "0" * 64))
