"""PROTOCOL section 1: what a control message may be, and how long any message."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conformance.conftest import Connect
from tests.conformance.peer import Peer, frame, new_id
from tests.stack import Person

MAX_MESSAGE = 2 * 1024 * 1024
OFFER: dict[str, Any] = {
    "type": "offer",
    "transfer": "00000000-0000-4000-8000-000000000000",
    "handle": 1,
    "name": "x",
    "size": 10,
    "content_type": "text/plain",
    "chunk_size": 4096,
    "sha256": None,
    "to": [],
    "meta": {},
}
PADDED = json.dumps({"type": "ping", "id": 1, "pad": ""})


def padded(length: int) -> str:
    """Return a ping of exactly `length` bytes."""
    return PADDED.replace('"pad": ""', f'"pad": "{"x" * (length - len(PADDED))}"')


def _name(message: dict[str, Any]) -> str:
    """Name a case the same in every process: its random ids left out."""
    return repr({name: "..." if name == "transfer" else value for name, value in message.items()})[:60]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        "7",
        '"ping"',
        "null",
        "{}",
        '{"id": 1}',
        '{"type": 1}',
        '{"type": "no such"}',
        '{"type": "welcome"}',
        '{"type": "ping"}',
        '{"type": "ping", "id": 1} {}',
        '{"type": "ping", "id": 1, "id": 1}',
        '{"type": "ping", "type": "ping", "id": 1}',
        '{"type": "ping", "id": 1, "a": {"b": 1, "b": 2}}',
        '{"type": "ping", "id": -1}',
        '{"type": "ping", "id": 1.0}',
        '{"type": "ping", "id": true}',
        '{"type": "ping", "id": "1"}',
        '{"type": "ping", "id": null}',
        '{"type": "ping", "id": 9007199254740992}',
        '{"type": "ping", "id": 9223372036854775808}',
        '{"type": "ping", "id": 1, "a": 9007199254740992}',
        '{"type": "ping", "id": 1, "a": -1}',
        '{"type": "ping", "id": 1, "a": NaN}',
        '{"type": "ping", "id": 1, "a": Infinity}',
        '{"type": "ping", "id": 1, "a": -Infinity}',
        '{"type": "ping", "id": 1, "a": 1e999}',
        '{"type": "ping", "id": 1, "a": "\\ud800"}',
        '{"type": "ping", "id": 1, "a": "\\u0000"}',
        '{"type": "ping", "id": 1, "\\u0000": 1}',
        '{"type": "ping", "id": 1, "a": ' + "[" * 8 + "]" * 8 + "}",
        '{"type": "ping", "id": 1, "a": ' + "[" * 5000 + "]" * 5000 + "}",
        '{"type": "ping", "id": ' + "9" * 5000 + "}",
        padded(65_537),
        "x" * 1_048_576,
    ],
    ids=lambda text: text[:40],
)
async def test_a_malformed_control_message_closes_4400(peer: Peer, text: str) -> None:
    await peer.say_text(text)
    code, reason = await peer.closes()
    assert code == 4400
    assert 0 < len(reason.encode()) <= 123


@pytest.mark.parametrize(
    "text",
    [
        '{"type": "ping", "id": 9007199254740991}',
        '{"type": "ping", "id": 0, "a": ' + "[" * 7 + "]" * 7 + "}",
        '{"type": "ping", "id": 0, "a": "' + "[" * 100 + '"}',
        '{"type": "ping", "id": 0, "a": 1.5e3, "b": "\\ud83d\\ude00", "c": "\\\\u0000"}',
        ' {"type":"ping","id":0}\n',
        padded(65_536),
    ],
    ids=lambda text: text[:40],
)
async def test_a_well_formed_control_message_is_taken(peer: Peer, text: str) -> None:
    await peer.say_text(text)
    await peer.hear("pong")


@pytest.mark.parametrize(
    "members",
    [
        {"transfer": "7"},
        {"transfer": None},
        {"transfer": "00000000-0000-4000-8000-00000000000g"},
        {"handle": 0},
        {"handle": 2**32},
        {"handle": "1"},
        {"handle": True},
        {"name": "x" * 256},
        {"name": None},
        {"size": -1},
        {"size": 1.5},
        {"size": "10"},
        {"size": 2**53},
        {"content_type": 1},
        {"chunk_size": 0},
        {"chunk_size": 2_048},
        {"chunk_size": 4_097},
        {"chunk_size": 8_388_608},
        {"chunk_size": None},
        {"sha256": "x" * 64},
        {"sha256": "A" * 64},
        {"sha256": "a" * 63},
        {"sha256": 1},
        {"to": "user:1"},
        {"to": [1]},
        {"to": None},
        {"meta": []},
        {"meta": {"a": 1}},
        {"meta": {"a": {"b": "c"}}},
        {"meta": {str(number): "x" for number in range(33)}},
        {"meta": {"a": "x" * 8192}},
    ],
    ids=lambda members: repr(members)[:40],
)
async def test_a_malformed_offer_closes_4400(peer: Peer, members: dict[str, Any]) -> None:
    await peer.say(**OFFER | members)
    code, _ = await peer.closes()
    assert code == 4400


@pytest.mark.parametrize("missing", ["transfer", "handle", "name", "size", "chunk_size"])
async def test_an_offer_without_a_member_closes_4400(peer: Peer, missing: str) -> None:
    await peer.say(**{name: value for name, value in OFFER.items() if name != missing})
    assert (await peer.closes())[0] == 4400


@pytest.mark.parametrize(
    "message",
    [
        {"type": "accept", "handle": 1, "transfer": new_id(), "chunk_size": 4096, "seq": 0},
        {"type": "accept", "handle": 1, "transfer": new_id(), "chunk_size": 4096, "seq": 2**32, "limit": 1},
        {"type": "reject", "handle": 1, "transfer": new_id()},
        {"type": "ack", "handle": 1, "seq": 1, "received": 1},
        {"type": "ack", "handle": 1, "seq": -1, "received": 1, "limit": 1},
        {"type": "ack", "handle": 1, "seq": "1", "received": 1, "limit": 1},
        {"type": "nack", "handle": 1, "seq": 1, "code": "because"},
        {"type": "nack", "handle": 1, "seq": 1},
        {"type": "finish", "handle": 1, "chunks": 1, "size": None},
        {"type": "finish", "handle": 1, "chunks": 1, "size": 1, "sha256": "nothing"},
        {"type": "done", "handle": 1, "transfer": new_id(), "size": 1},
        {"type": "done", "handle": 1, "transfer": new_id(), "size": 1, "sha256": None},
        {"type": "abort", "handle": 1, "transfer": new_id(), "code": "cancelled"},
        {"type": "abort", "handle": 1, "transfer": new_id(), "code": "cancelled", "final": 1},
        {"type": "pong", "id": "1"},
        {"type": "going_away", "reason": "worker_draining", "retry_after": 1},
    ],
    ids=_name,
)
async def test_other_malformed_messages_close_4400(peer: Peer, message: dict[str, Any]) -> None:
    await peer.say(**message)
    assert (await peer.closes())[0] == 4400


@pytest.mark.parametrize(
    "message",
    [
        {"type": "accept", "handle": 9, "transfer": new_id(), "chunk_size": 4096, "seq": 0, "limit": 4},
        {"type": "reject", "handle": 9, "transfer": new_id(), "code": "declined", "message": ""},
        {"type": "ack", "handle": 9, "seq": 1, "received": 1, "limit": 1},
        {"type": "nack", "handle": 9, "seq": 1, "code": "lost"},
        {"type": "finish", "handle": 9, "chunks": 0, "size": 0, "sha256": None},
        {"type": "done", "handle": 9, "transfer": new_id(), "size": 1, "sha256": "0" * 64},
        {"type": "abort", "handle": 9, "transfer": new_id(), "code": "cancelled", "message": "", "final": True},
    ],
    ids=lambda message: message["type"],
)
async def test_a_message_for_a_handle_that_was_never_offered_closes_4400(peer: Peer, message: dict[str, Any]) -> None:
    await peer.say(**message)
    assert (await peer.closes())[0] == 4400


async def test_a_chunk_for_a_handle_that_was_never_offered_closes_4400(peer: Peer) -> None:
    await peer.chunk(9, 0, b"data")
    assert (await peer.closes())[0] == 4400


@pytest.mark.parametrize("length", [0, 1, 11, 12])
async def test_a_chunk_without_data_closes_4400(peer: Peer, length: int) -> None:
    handle, _ = await peer.offer(size=10)
    await peer.hear("accept", handle=handle)
    await peer.say_bytes(frame(handle, 0, b"")[:length])
    assert (await peer.closes())[0] == 4400


async def test_text_that_is_not_utf8_closes_1007(peer: Peer) -> None:
    await peer.socket.send(b'{"type": "ping", "id": 1, "a": "\xff\xfe"}', text=True)
    assert (await peer.closes())[0] == 1007


async def test_a_message_over_the_limit_closes_1009(peer: Peer) -> None:
    handle, _ = await peer.offer(size=10)
    await peer.hear("accept", handle=handle)
    await peer.say_bytes(bytes(MAX_MESSAGE + 1))
    code, reason = await peer.closes()
    assert (code, reason) == (1009, "message too big")


async def test_a_message_over_the_limit_in_fragments_closes_1009(peer: Peer) -> None:
    handle, _ = await peer.offer(size=10)
    await peer.hear("accept", handle=handle)
    await peer.socket.send([bytes(65_536)] * 32 + [b"x"])
    assert (await peer.closes())[0] == 1009


async def test_a_text_message_over_the_limit_closes_1009(peer: Peer) -> None:
    await peer.say_text("x" * (MAX_MESSAGE + 1))
    assert (await peer.closes())[0] == 1009


async def test_a_message_at_the_limit_is_no_1009(connect: Connect, alice: Person) -> None:
    peer = await connect(alice)
    handle, _ = await peer.offer(size=MAX_MESSAGE)
    await peer.hear("accept", handle=handle)
    await peer.say_bytes(frame(handle, 0, bytes(MAX_MESSAGE - 12)))
    assert (await peer.closes())[0] == 4400  # a chunk of the wrong length


async def test_pings_are_answered_with_their_id(peer: Peer) -> None:
    for number in (0, 7, 2**53 - 1):
        await peer.say("ping", id=number)
        await peer.hear("pong", id=number)


async def test_a_pong_that_nobody_asked_for_is_fine(peer: Peer) -> None:
    await peer.say("pong", id=5)
    await peer.settle()
