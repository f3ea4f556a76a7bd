"""The proxy: what passes, where it is cut, and what both sides see of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from rig.proxy import DOWN, UP, Conditions, CutAtByte, CutAtFrame, Proxy
from rig.waiting import until

HANDSHAKE = b"GET / HTTP/1.1\r\n\r\n"
ANSWER = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
FRAMES = [b"\x81\x02hi", b"\x82\x7e\x01\x00" + bytes(256), b"\x81\x00", b"\x81\x05hello"]


class Server:
    """Answers the handshake and keeps what comes, by connection. `says`: right away; `last_words`: at the end of what comes."""

    def __init__(self) -> None:
        self.port = 0
        self.received: list[bytearray] = []
        self.resets = 0
        self.says = b""
        self.last_words = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ANSWER + self.says)
            self.received.append(received := bytearray())
            while block := await reader.read(65_536):
                received += block
            writer.write(self.last_words)
        except ConnectionResetError:
            self.resets += 1
        finally:
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        server.port = listening.sockets[0].getsockname()[1]
        yield server


@asynccontextmanager
async def connection(proxy: Proxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(HANDSHAKE)
    assert await reader.readuntil(b"\r\n\r\n") == ANSWER
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def read_all(reader: asyncio.StreamReader) -> bytes:
    """Return what comes up to the end, or to a reset."""
    got = b""
    try:
        while block := await reader.read(65_536):
            got += block
    except ConnectionResetError:
        pass
    return got


async def test_everything_passes_and_the_end_too(server: Server) -> None:
    server.last_words = b"bye"
    async with Proxy(server.port) as proxy, connection(proxy) as (reader, writer):
        writer.write(b"x" * 1_000_000)
        writer.write_eof()
        assert await reader.read() == b"bye"
    assert server.received == [b"x" * 1_000_000]


async def test_a_cut_comes_at_its_byte_and_resets_both_sides(server: Server) -> None:
    cut: list[int] = []
    async with (
        Proxy(
            server.port,
            cuts={1: CutAtByte(UP, 100_001)}.get,
            on_cut=lambda connection: cut.append(connection.passed[UP]),
        ) as proxy,
        connection(proxy) as (reader, writer),
    ):
        writer.write(b"x" * 300_000)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await until(lambda: server.resets, what="reset at the server")
    assert cut == [100_001]
    assert len(server.received[0]) <= 100_001  # a reset may overtake what was sent before
    assert proxy.planned_cuts == server.resets == 1


async def test_a_connection_without_a_plan_is_not_cut(server: Server) -> None:
    server.last_words = b"bye"
    async with Proxy(server.port, cuts={1: CutAtByte(UP, 10)}.get) as proxy:
        async with connection(proxy) as (reader, writer):
            writer.write(b"x" * 100)
            with pytest.raises(ConnectionResetError):
                await reader.read()
        async with connection(proxy) as (reader, writer):
            writer.write(b"x" * 100)
            writer.write_eof()
            assert await reader.read() == b"bye"
    assert proxy.opened == 2


async def test_a_byte_that_has_passed_already_is_cut_at_with_the_next(server: Server) -> None:
    async with Proxy(server.port) as proxy, connection(proxy) as (reader, writer):
        writer.write(b"x" * 1_000)
        await until(lambda: proxy.connections[0].passed[UP] == 1_000, what="bytes")
        proxy.cut_at(CutAtByte(UP, 10))
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert not proxy.connections
    assert len(server.received[0]) <= 1_000


@pytest.mark.parametrize("slices", [1, 65_536])
@pytest.mark.parametrize("offset", [-1, 0, 1])
@pytest.mark.parametrize("frames", [0, 1, 2])
async def test_a_cut_at_a_frame_is_exact_to_the_byte(server: Server, frames: int, offset: int, slices: int) -> None:
    server.says = b"".join(FRAMES)
    conditions = Conditions(slice_bytes=slices)
    async with Proxy(server.port, conditions, cuts={1: CutAtFrame(DOWN, frames, offset)}.get) as proxy:
        async with connection(proxy) as (reader, _):
            got = await read_all(reader)
        await until(lambda: not proxy.connections, what="end of the connection")
    assert len(got) == sum(map(len, FRAMES[: frames + 1])) + offset
    assert proxy.planned_cuts == 1


async def test_the_rate_holds(server: Server) -> None:
    async with Proxy(server.port, Conditions(rate=1_000_000)) as proxy, connection(proxy) as (reader, writer):
        began = time.monotonic()
        writer.write(b"x" * 500_000)
        writer.write_eof()
        await reader.read()
        assert time.monotonic() - began >= 0.3


async def test_delay_holds_each_way(server: Server) -> None:
    server.last_words = b"bye"
    async with Proxy(server.port, Conditions(delay=0.1)) as proxy:
        began = time.monotonic()
        async with connection(proxy) as (reader, writer):
            writer.write_eof()
            assert await reader.read() == b"bye"
        assert time.monotonic() - began >= 0.3  # the handshake there and back, the last words


async def test_connections_live_as_long_as_they_may(server: Server) -> None:
    async with Proxy(server.port, Conditions(life_seconds=0.2)) as proxy, connection(proxy) as (reader, _):
        began = time.monotonic()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert time.monotonic() - began >= 0.15


@pytest.mark.parametrize("direction", [UP, DOWN])
async def test_what_is_held_passes_when_it_is_released(server: Server, direction: str) -> None:
    server.last_words = b"bye"
    async with Proxy(server.port) as proxy, connection(proxy) as (reader, writer):
        (held,) = proxy.hold(direction)
        writer.write(b"x")
        writer.write_eof()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(), 0.2)
        assert server.received == ([b"x"] if direction == DOWN else [b""])
        held.release()
        assert await reader.read() == b"bye"


async def test_what_is_held_reaches_the_server_after_its_client_saw_a_cut(server: Server) -> None:
    async with Proxy(server.port) as proxy, connection(proxy) as (reader, writer):
        (held,) = proxy.hold(UP)
        writer.write(b"late")
        await asyncio.sleep(0.05)
        held.drop_client()
        await read_all(reader)
        async with connection(proxy):
            held.release()
            await until(lambda: server.received[0] == b"late", what="late bytes")


@pytest.mark.parametrize("slices", [1, 65_536])
async def test_messages_over_the_limit_are_swallowed(server: Server, slices: int) -> None:
    conditions = Conditions(most_message=255, slice_bytes=slices)
    async with Proxy(server.port, conditions) as proxy, connection(proxy) as (reader, writer):
        writer.write(b"".join(FRAMES))
        writer.write_eof()
        await reader.read()
    assert server.received == [FRAMES[0] + FRAMES[2] + FRAMES[3]]
    assert (proxy.over_limit, proxy.largest) == (1, 5)


@pytest.mark.parametrize("what", ["close", "reset"])
async def test_messages_over_the_limit_end_their_connection(server: Server, what: str) -> None:
    async with (
        Proxy(server.port, Conditions(most_message=255, over_limit=what)) as proxy,
        connection(proxy) as (reader, writer),
    ):
        writer.write(FRAMES[0] + FRAMES[1])
        if what == "close":
            assert await reader.read() == b""
        else:
            with pytest.raises(ConnectionResetError):
                await reader.read()
    assert proxy.over_limit == 1


async def test_clients_are_reset_where_no_server_listens_or_the_proxy_refuses(server: Server) -> None:
    async with Proxy(1) as nowhere, Proxy(server.port, Conditions(refusing=True)) as refusing:
        for proxy in (nowhere, refusing):
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
    assert not server.received
