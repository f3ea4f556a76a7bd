"""The demo's network cuts at positions in the payload, however often it is resumed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from demo.cuts import PayloadProxy
from rig.proxy import UP
from rig.waiting import until

HANDSHAKE = b"GET / HTTP/1.1\r\n\r\n"
FAST = 1e9


@pytest.fixture
async def server_port() -> AsyncIterator[int]:
    """A server that reads."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(65_536):
                pass
        except ConnectionResetError:
            pass
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname()[1]


async def sent_until_cut(proxy: PayloadProxy, count: int, *, resumed_at: int = 0) -> None:
    """Connect, resume, send `count` bytes, and see the reset."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(HANDSHAKE)
    await until(lambda: proxy.connections, what="connection")
    proxy.resume_at(resumed_at)
    writer.write(b"x" * count)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.transport.abort()


async def test_positions_go_on_where_the_client_resumed(server_port: int) -> None:
    told: list[int] = []
    async with PayloadProxy(server_port, UP, positions=(1_000, 1_500), rate=FAST, told=told.append) as proxy:
        await sent_until_cut(proxy, 5_000)
        await sent_until_cut(proxy, 5_000, resumed_at=900)
    assert told == [1_000, 1_500]


async def test_cuts_are_put_off_while_told_so(server_port: int) -> None:
    told: list[int] = []
    async with PayloadProxy(server_port, UP, positions=(10,), rate=FAST, told=told.append) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        proxy.put_off()
        writer.write(HANDSHAKE + b"x" * 1_000)
        await until(lambda: proxy.position == 1_000, what="bytes")
        assert told == []
        proxy.go_on()
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.transport.abort()
    assert told == [1_000]
