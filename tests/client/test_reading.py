"""Large messages go past the parser of `websockets`: what comes out is the same, however the bytes are cut."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosedError
from websockets.frames import Frame, Opcode

from delivery.client.reading import LARGE_BYTES, LargeMessages

LARGE = os.urandom(70_000)
MIDDLE = os.urandom(LARGE_BYTES)
SMALL = os.urandom(LARGE_BYTES - 1)


def raw(opcode: Opcode, data: bytes, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=False)


class Script:
    """A server that writes `frames` as they stand to whoever says something."""

    def __init__(self) -> None:
        self.frames = b""
        self.server: Server | None = None

    async def handle(self, connection: ServerConnection) -> None:
        await connection.recv()
        connection.transport.write(self.frames)
        await connection.wait_closed()

    @property
    def url(self) -> str:
        assert self.server is not None
        return f"ws://127.0.0.1:{next(iter(self.server.sockets)).getsockname()[1]}"


@pytest.fixture
async def script() -> AsyncIterator[Script]:
    script = Script()
    async with serve(script.handle, "127.0.0.1", 0, compression=None) as script.server:
        yield script


def cutting(length: int) -> type[LargeMessages]:
    """Return a connection to which at most `length` bytes come at a time."""

    class Cut(LargeMessages):
        def data_received(self, data: bytes) -> None:
            for at in range(0, len(data), length):
                super().data_received(data[at : at + length])

    return Cut


@pytest.mark.parametrize("length", [1, 2, 3, 9, 10, 11, 4096, 1 << 20])
async def test_messages_come_out_as_they_were_sent_however_they_are_cut(script: Script, length: int) -> None:
    sent = [LARGE, "text", b"", SMALL, MIDDLE, LARGE, "x" * 300, "y" * 70_000, LARGE]
    script.frames = b"".join(
        raw(Opcode.TEXT, one.encode()) if isinstance(one, str) else raw(Opcode.BINARY, one) for one in sent
    )
    async with connect(script.url, compression=None, create_connection=cutting(length)) as client:
        await client.send("go")
        assert [await client.recv() for _ in sent] == sent


async def test_a_large_message_is_bytes_joined_once(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """`websockets`' parser never sees it."""
    fed = 0
    script.frames = raw(Opcode.BINARY, LARGE)
    async with connect(script.url, compression=None, create_connection=LargeMessages) as client:
        receive_data = client.protocol.receive_data

        def counting(data: bytes) -> None:
            nonlocal fed
            fed += len(data)
            receive_data(data)

        monkeypatch.setattr(client.protocol, "receive_data", counting)
        await client.send("go")
        message = await client.recv()
    assert message == LARGE
    assert type(message) is bytes
    assert fed < 100


async def test_fragments_and_pings_are_left_to_websockets(script: Script) -> None:
    script.frames = (
        raw(Opcode.BINARY, LARGE, fin=False)
        + raw(Opcode.PING, b"there?")
        + raw(Opcode.CONT, MIDDLE)
        + raw(Opcode.BINARY, MIDDLE)
    )
    async with connect(script.url, compression=None, create_connection=LargeMessages) as client:
        await client.send("go")
        assert await client.recv() == LARGE + MIDDLE
        assert await client.recv() == MIDDLE


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (raw(Opcode.BINARY, LARGE, fin=False) + raw(Opcode.BINARY, MIDDLE), 1002),
        (raw(Opcode.BINARY, bytes(200_000)), 1009),
        (Frame(Opcode.BINARY, LARGE).serialize(mask=True), 1002),
        (bytes([0xC2]) + raw(Opcode.BINARY, LARGE)[1:], 1002),
    ],
    ids=["whole message inside a fragmented one", "too large", "masked", "reserved bit"],
)
async def test_violations_close_as_they_do_without_us(script: Script, frames: bytes, code: int) -> None:
    script.frames = frames
    async with connect(script.url, compression=None, max_size=100_000, create_connection=LargeMessages) as client:
        await client.send("go")
        with pytest.raises(ConnectionClosedError) as caught:
            await client.recv()
    assert caught.value.sent is not None
    assert caught.value.sent.code == code


async def test_a_connection_that_is_lost_inside_a_large_message_says_so(script: Script) -> None:
    script.frames = raw(Opcode.BINARY, LARGE)[:50_000]
    async with connect(script.url, compression=None, create_connection=LargeMessages) as client:
        await client.send("go")
        await asyncio.sleep(0.05)
        assert script.server is not None
        for connection in script.server.connections:
            connection.transport.abort()
        with pytest.raises(ConnectionClosedError):
            await client.recv()
