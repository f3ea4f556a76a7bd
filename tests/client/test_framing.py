"""A chunk's frame is what `websockets` would make of it, whatever its length."""

from __future__ import annotations

import os

import pytest
from websockets.frames import Frame, Opcode

from delivery.websocket.frames import ROOM_BYTES, masked_frame
from tests.client.unframing import unframed

LENGTHS = [1, 4, 125, 126, 127, 65_535, 65_536, 262_157]


def buffer_of(message: bytes) -> bytearray:
    return bytearray(ROOM_BYTES) + message + b"what another chunk left behind"


@pytest.mark.parametrize("length", LENGTHS)
def test_a_frame_is_read_as_the_message_it_was_made_of(length: int) -> None:
    message = os.urandom(length)
    assert unframed(masked_frame(buffer_of(message), ROOM_BYTES + length)) == Frame(Opcode.BINARY, message)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_frame_is_the_same_as_the_one_of_websockets(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    key = bytes.fromhex("01a0f377")
    monkeypatch.setattr("secrets.token_bytes", lambda count: key)
    message = os.urandom(length)
    expected = Frame(Opcode.BINARY, message).serialize(mask=True)
    assert masked_frame(buffer_of(message), ROOM_BYTES + length) == expected


def test_each_frame_has_a_key_of_its_own() -> None:
    buffer = buffer_of(bytes(1000))
    keys = {masked_frame(buffer, ROOM_BYTES + 1000)[4:8] for _ in range(10)}
    assert len(keys) == 10


def test_a_message_can_be_framed_again_from_the_same_buffer() -> None:
    message = os.urandom(300)
    buffer = buffer_of(message)
    masked_frame(buffer, ROOM_BYTES + 300)
    assert unframed(masked_frame(buffer, ROOM_BYTES + 300)).data == message
