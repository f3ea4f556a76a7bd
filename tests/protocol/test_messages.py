"""Control messages: the shared vectors in both directions, and encoding."""

from __future__ import annotations

import json

import pytest

from delivery.errors import ProtocolViolation, UsageError
from delivery.protocol import messages
from delivery.protocol.messages import FROM_CLIENT, FROM_SERVER, Hello, Message, Ping, UploadOffer

from .vectors import load, name_of, text_of

VECTORS = load("messages")
KINDS = {"client": [FROM_CLIENT], "server": [FROM_SERVER], "both": [FROM_CLIENT, FROM_SERVER]}
TRANSFER = "0f8fad5b-d9cb-469f-a165-70867728950e"


def members(message: Message) -> dict[str, object]:
    values = {name: getattr(message, member.field or name) for name, member in message.MEMBERS.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=name_of)
def test_a_valid_message_means_its_members(vector):
    for kinds in KINDS[vector["from"]]:
        message = messages.decode(text_of(vector), kinds)
        assert members(message) == vector["means"]


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=name_of)
def test_a_valid_message_survives_encoding(vector):
    for kinds in KINDS[vector["from"]]:
        message = messages.decode(text_of(vector), kinds)
        assert messages.decode(messages.encode(message), kinds) == message


@pytest.mark.parametrize("vector", VECTORS["invalid"], ids=name_of)
def test_an_invalid_message_is_a_violation(vector):
    for kinds in KINDS[vector["from"]]:
        with pytest.raises(ProtocolViolation) as caught:
            messages.decode(text_of(vector), kinds)
        assert caught.value.code == vector["close"]
        assert len(caught.value.reason.encode()) <= 123


def test_every_type_has_valid_and_invalid_vectors():
    for frm, kinds in (("client", FROM_CLIENT), ("server", FROM_SERVER)):
        valid = {json.loads(text_of(v))["type"] for v in VECTORS["valid"] if v["from"] in (frm, "both")}
        assert valid == set(kinds)


def test_a_reason_names_the_member_and_no_value():
    with pytest.raises(ProtocolViolation) as caught:
        messages.decode('{"type":"ping","id":"secret"}', FROM_CLIENT)
    assert caught.value.reason == "ping.id: expected an integer"


def test_a_hello_leaves_room_for_the_header_where_it_names_no_chunk_size():
    assert Hello(client="c", max_message=16_777_216).chunk_size == 262_144
    assert Hello(client="c", max_message=262_155).chunk_size == 131_072
    assert Hello(client="c", max_message=65_548).chunk_size == 65_536


def test_a_token_is_not_shown():
    assert "secret" not in repr(Hello(client="c", max_message=65_548, token="secret"))


def test_absent_values_are_left_out_or_null_as_the_protocol_shows_them():
    done = messages.Done(transfer=TRANSFER, handle=1, size=0, sha256="0" * 64)
    assert "payload" not in json.loads(messages.encode(done))
    offer = UploadOffer(transfer=TRANSFER, handle=1, name="", size=None, chunk_size=4096)
    assert json.loads(messages.encode(offer))["size"] is None


def test_a_message_that_is_too_long_is_not_encoded():
    offer = UploadOffer(transfer=TRANSFER, handle=1, name="", size=1, chunk_size=4096, to=("user:1",) * 10_000)
    with pytest.raises(UsageError, match="at most 65536"):
        messages.encode(offer)


@pytest.mark.parametrize("wrong", [{"name": "n" * 256}, {"name": "\udc80"}, {"size": -1}, {"meta": {"k": 1}}])
def test_checking_finds_what_the_peer_would_refuse(wrong):
    offer = UploadOffer(**{"transfer": TRANSFER, "handle": 1, "name": "", "size": 1, "chunk_size": 4096, **wrong})
    with pytest.raises(UsageError):
        messages.check(offer, FROM_CLIENT)


def test_checking_finds_what_only_the_other_side_may_say():
    with pytest.raises(UsageError, match="unknown control message"):
        messages.check(messages.GoingAway(reason="server_draining"), FROM_CLIENT)


def test_checking_lets_pass_what_the_peer_takes():
    messages.check(Ping(id=1), FROM_CLIENT)
