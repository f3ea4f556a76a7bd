"""Large messages go past the parser of `websockets`: what comes out is the same, however the bytes are cut."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK
from websockets.frames import Frame, Opcode
from websockets.typing import BytesLike

from delivery.websocket import client as client_module
from delivery.websocket.client import FREE_BYTES, NEXT_HEAD_BYTES, ClientReader, ClientSocket, MessageBuffers
from delivery.websocket.past_parser import LARGE_BYTES
from tests.client.conftest import eventually

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


def cut_to(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have at most `length` bytes come at a time."""

    class Cut(ClientReader):
        def __init__(self, connection: ClientSocket) -> None:
            super().__init__(connection)
            self.whole = memoryview(bytearray(65_536))

        def get_buffer(self, sizehint: int) -> memoryview:
            return self.whole

        def buffer_updated(self, nbytes: int) -> None:
            came = self.whole[:nbytes]
            while came:
                room = super().get_buffer(-1)
                count = min(length, len(room), len(came))
                room[:count] = came[:count]
                super().buffer_updated(count)
                came = came[count:]

    monkeypatch.setattr(client_module, "ClientReader", Cut)


class Enough(Exception):
    """As many messages came as were wanted."""


async def taken(client: ClientConnection, count: int) -> list[str | bytes]:
    """Return what `serve` hands over, as it was at that moment, each buffer given back at once."""
    assert isinstance(client, ClientSocket)
    came: list[str | bytes] = []

    def take(message: str | BytesLike) -> None:
        came.append(message if isinstance(message, str) else bytes(message))
        if isinstance(message, memoryview):
            client.buffers.give_back(message)
        if len(came) == count:
            raise Enough

    with pytest.raises(Enough):
        async with asyncio.timeout(5):
            await client.serve(take)
    return came


@pytest.mark.parametrize("length", [1, 2, 3, 9, 10, 11, 4096, 1 << 20])
async def test_messages_come_out_as_they_were_sent_however_they_are_cut(
    script: Script, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_to(length, monkeypatch)
    sent = [LARGE, "text", b"", SMALL, MIDDLE, LARGE, "x" * 300, "y" * 70_000, LARGE]
    script.frames = b"".join(
        raw(Opcode.TEXT, one.encode()) if isinstance(one, str) else raw(Opcode.BINARY, one) for one in sent
    )
    async with connect(script.url, compression=None, create_connection=ClientSocket) as client:
        await client.send("go")
        assert [await client.recv() for _ in sent] == sent
    async with connect(script.url, compression=None, create_connection=ClientSocket) as client:
        await client.send("go")
        assert await taken(client, len(sent)) == sent


async def test_a_large_message_goes_past_the_parser(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = 0
    script.frames = raw(Opcode.BINARY, LARGE)
    async with connect(script.url, compression=None, create_connection=ClientSocket) as client:
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
    async with connect(script.url, compression=None, create_connection=ClientSocket) as client:
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
    async with connect(script.url, compression=None, max_size=100_000, create_connection=ClientSocket) as client:
        await client.send("go")
        with pytest.raises(ConnectionClosedError) as caught:
            await client.recv()
    assert caught.value.sent is not None
    assert caught.value.sent.code == code


async def test_a_connection_that_is_lost_inside_a_large_message_says_so(script: Script) -> None:
    script.frames = raw(Opcode.BINARY, LARGE)[:50_000]
    async with connect(script.url, compression=None, create_connection=ClientSocket) as client:
        await client.send("go")
        await asyncio.sleep(0.05)
        assert script.server is not None
        for connection in script.server.connections:
            connection.transport.abort()
        with pytest.raises(ConnectionClosedError):
            await client.recv()


async def test_fragmented_messages_keep_their_place_among_those_that_are_taken_at_once(script: Script) -> None:
    script.frames = (
        raw(Opcode.TEXT, b"one")
        + raw(Opcode.BINARY, LARGE)
        + raw(Opcode.BINARY, LARGE, fin=False)
        + raw(Opcode.CONT, MIDDLE)
        + raw(Opcode.BINARY, MIDDLE)
        + raw(Opcode.TEXT, b"two")
        + raw(Opcode.TEXT, b"th", fin=False)
        + raw(Opcode.CONT, b"ree")
        + raw(Opcode.BINARY, LARGE)
    )
    async with connect(script.url, compression=None, create_connection=ClientSocket) as client:
        await client.send("go")
        assert await taken(client, 7) == ["one", LARGE, LARGE + MIDDLE, MIDDLE, "two", "three", LARGE]


async def test_messages_that_came_before_anybody_served_are_taken_first(script: Script) -> None:
    script.frames = raw(Opcode.TEXT, b"one") + raw(Opcode.BINARY, LARGE) + raw(Opcode.TEXT, b"two")
    async with connect(script.url, compression=None, create_connection=ClientSocket) as client:
        await client.send("go")
        await eventually(lambda: len(client.recv_messages.frames) == 3)
        assert await taken(client, 3) == ["one", LARGE, "two"]


async def test_what_a_message_raises_is_raised_to_who_serves_and_the_rest_is_dropped(script: Script) -> None:
    script.frames = raw(Opcode.BINARY, LARGE) * 100
    async with connect(script.url, compression=None, create_connection=ClientSocket) as client:
        await client.send("go")
        assert await taken(client, 1) == [LARGE]
        await client.close()
        assert client.close_code == 1000


async def test_serving_ends_as_receiving_does(script: Script) -> None:
    script.frames = raw(Opcode.TEXT, b"one") + raw(Opcode.CLOSE, (1001).to_bytes(2, "big") + b"bye")
    came: list[str | BytesLike] = []
    async with connect(script.url, compression=None, create_connection=ClientSocket) as client:
        await client.send("go")
        with pytest.raises(ConnectionClosedOK) as caught:
            await client.serve(came.append)
    assert came == ["one"]
    assert caught.value.rcvd is not None
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1001, "bye")


async def test_a_text_that_is_none_closes_with_1007(script: Script) -> None:
    script.frames = raw(Opcode.TEXT, b"\xff")
    async with connect(script.url, compression=None, create_connection=ClientSocket) as client:
        await client.send("go")
        with pytest.raises(ConnectionClosedError) as caught:
            await client.serve(lambda message: None)
    assert caught.value.sent is not None
    assert caught.value.sent.code == 1007


async def test_a_buffer_that_was_given_back_is_used_again(script: Script) -> None:
    other = os.urandom(len(LARGE))
    script.frames = raw(Opcode.BINARY, LARGE) + raw(Opcode.BINARY, other) + raw(Opcode.BINARY, LARGE)
    buffers: list[object] = []
    async with connect(script.url, compression=None, create_connection=ClientSocket) as client:
        take = client.buffers.take

        def noting(length: int) -> memoryview:
            assert length == len(LARGE) + NEXT_HEAD_BYTES
            buffers.append((room := take(length)).obj)
            return room

        client.buffers.take = noting
        await client.send("go")
        assert await taken(client, 3) == [LARGE, other, LARGE]
    assert len(buffers) == 3
    assert all(buffer is buffers[0] for buffer in buffers)


def test_as_many_buffers_are_kept_as_fit() -> None:
    buffers, length = MessageBuffers(), FREE_BYTES // 4
    lent = [buffers.take(length) for _ in range(6)]
    known = [room.obj for room in lent]
    for room in lent:
        buffers.give_back(room[12:])
    again = [buffers.take(length) for _ in range(6)]
    assert sum(any(room.obj is one for one in known) for room in again) == 4


def test_a_buffer_that_is_long_enough_is_lent_as_long_as_is_wanted() -> None:
    buffers = MessageBuffers()
    lent = buffers.take(1000)
    known = lent.obj
    buffers.give_back(lent)
    shorter = buffers.take(400)
    assert (shorter.obj is known, len(shorter)) == (True, 400)
    buffers.give_back(shorter)
    longer = buffers.take(2000)
    assert (longer.obj is known, len(longer)) == (False, 2000)


def test_a_view_that_was_given_back_cannot_be_looked_at() -> None:
    view = memoryview(bytearray(100))
    MessageBuffers().give_back(view)
    with pytest.raises(ValueError, match="released"):
        view[0]
