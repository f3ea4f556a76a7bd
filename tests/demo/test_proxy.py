"""The demo's network: what passes, where it is cut, and what both sides see of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from demo.proxy import Direction, Proxy

HANDSHAKE = b"GET / HTTP/1.1\r\n\r\n"
ANSWER = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
FAST = 1e9


class Server:
    """Answers the handshake and keeps what comes, by connection. `last_words` are said at the end of what comes."""

    def __init__(self) -> None:
        self.port = 0
        self.received: list[bytearray] = []
        self.resets = 0
        self.last_words = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER)
        self.received.append(bytearray())
        try:
            while block := await reader.read(65_536):
                self.received[-1] += block
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


def proxy_to(server: Server, *cuts: int, rate: float = FAST, said: list[int] | None = None) -> Proxy:
    return Proxy(
        server.port, Direction.TO_SERVER, cuts=cuts, rate=rate, on_cut=(said if said is not None else []).append
    )


async def test_everything_passes_and_the_end_too(server: Server) -> None:
    server.last_words = b"bye"
    async with proxy_to(server) as proxy, connection(proxy) as (reader, writer):
        writer.write(b"x" * 1_000_000)
        writer.write_eof()
        assert await reader.read() == b"bye"
    assert server.received == [b"x" * 1_000_000]


async def test_cut_comes_at_its_byte_and_resets_both_sides(server: Server) -> None:
    said: list[int] = []
    async with proxy_to(server, 100_001, said=said) as proxy, connection(proxy) as (reader, writer):
        writer.write(b"x" * 300_000)
        with pytest.raises(ConnectionResetError):
            await reader.read()
    assert said == [100_001]
    assert len(server.received[0]) <= 100_001  # a reset may overtake what was sent before
    assert server.resets == 1


async def test_position_goes_on_where_the_client_resumed(server: Server) -> None:
    said: list[int] = []
    async with proxy_to(server, 1_000, 1_500, said=said) as proxy:
        async with connection(proxy) as (reader, writer):
            writer.write(b"x" * 5_000)
            with pytest.raises(ConnectionResetError):
                await reader.read()
        async with connection(proxy) as (reader, writer):
            proxy.resume_at(900)
            writer.write(b"x" * 599)
            await asyncio.wait_for(_until(lambda: proxy.position == 1_499), 5)
            writer.write(b"x" * 2)
            with pytest.raises(ConnectionResetError):
                await reader.read()
    assert said == [1_000, 1_500]


async def test_cuts_are_put_off_while_told_so(server: Server) -> None:
    said: list[int] = []
    async with proxy_to(server, 10, said=said) as proxy, connection(proxy) as (reader, writer):
        proxy.cutting = False
        writer.write(b"x" * 1_000)
        await asyncio.wait_for(_until(lambda: proxy.position == 1_000), 5)
        assert said == []
        proxy.cutting = True
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await reader.read()
    assert said == [1_000]


async def test_rate_holds(server: Server) -> None:
    async with proxy_to(server, rate=1_000_000) as proxy, connection(proxy) as (reader, writer):
        began = time.monotonic()
        writer.write(b"x" * 500_000)
        writer.write_eof()
        await reader.read()
        assert time.monotonic() - began >= 0.3


async def test_client_is_dropped_where_no_server_listens() -> None:
    proxy = Proxy(1, Direction.TO_SERVER, cuts=(), rate=FAST, on_cut=lambda position: None)
    async with proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def _until(holds) -> None:
    while not holds():
        await asyncio.sleep(0.005)
