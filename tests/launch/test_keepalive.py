"""WebSocket's own pings on a slow link: whoever still sends or takes bytes is not gone. A real server, short timeouts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from delivery.websocket import extensions, server
from delivery.websocket import uvicorn as guards
from tests.hostile.wire import BINARY, PING, PONG, TEXT, Wire, frame
from tests.launch.test_guards import serving

PING_SECONDS = 0.1
PONG_SECONDS = 0.5
SLOW_SECONDS = 3 * PONG_SECONDS  # that one large frame takes
LARGE = 300_000


@pytest.fixture(autouse=True)
def _short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PING_SECONDS", PING_SECONDS)
    monkeypatch.setattr(server, "PONG_SECONDS", PONG_SECONDS)


@contextlib.asynccontextmanager
async def peer_of(application: Callable[..., Awaitable[None]]) -> AsyncIterator[Wire]:
    """Open a socket whose peer, unless it reads, answers no ping."""
    async with serving(application) as port, Wire.open(port, reads=False) as wire:
        yield wire


async def echo_length(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """An ASGI app that answers each message with its length."""
    await receive()
    await send({"type": "websocket.accept", "subprotocol": "delivery.v1"})
    while (message := await receive())["type"] == "websocket.receive":
        length = len(message.get("bytes") or message.get("text"))
        await send({"type": "websocket.send", "text": f'{{"type": "length", "length": {length}}}'})


async def drip(wire: Wire, data: bytes, *, seconds: float) -> None:
    """Send data evenly over some seconds."""
    steps = 60
    size = -(-len(data) // steps)
    for at in range(0, len(data), size):
        assert await wire.send(data[at : at + size]), "the server ended the connection"
        await asyncio.sleep(seconds / steps)


@pytest.mark.parametrize("opcode", [BINARY, TEXT], ids=["past the parser", "through the parser"])
async def test_a_frame_that_comes_slowly_is_no_silence(opcode: int) -> None:
    async with peer_of(echo_length) as wire:
        await drip(wire, frame(opcode, b"x" * LARGE), seconds=SLOW_SECONDS)  # no pong can overtake it
        wire.read()
        assert (await wire.hear("length"))["length"] == LARGE


async def test_a_message_of_many_slow_frames_is_no_silence() -> None:
    async with peer_of(echo_length) as wire:
        pieces = [frame(BINARY if number == 0 else 0, b"x" * 100, fin=number == 59) for number in range(60)]
        await drip(wire, b"".join(pieces), seconds=SLOW_SECONDS)
        wire.read()
        assert (await wire.hear("length"))["length"] == 6_000


async def test_a_peer_that_goes_silent_is_closed() -> None:
    async with peer_of(echo_length) as wire:
        await wire.send(frame(BINARY, b"x" * LARGE)[: LARGE // 2])  # and no more
        began = time.monotonic()
        assert await _close_code(wire) == 1011
        assert PONG_SECONDS / 2 < time.monotonic() - began < 10 * PONG_SECONDS


async def _close_code(wire: Wire) -> int:
    """Return the code of the close frame, without answering any ping."""
    while True:
        first, length = await asyncio.wait_for(wire.reader.readexactly(2), 10)
        data = await wire.reader.readexactly(length)
        if first & 0x0F == 8:
            return int.from_bytes(data[:2], "big")
        assert first & 0x0F == PING


SENT = os.urandom(2_000_000)


async def send_large(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """An ASGI app that sends a message larger than all buffers on the way."""
    await receive()
    await send({"type": "websocket.accept", "subprotocol": "delivery.v1"})
    await send({"type": "websocket.send", "bytes": SENT})
    while (await receive())["type"] != "websocket.disconnect":
        pass


@contextlib.asynccontextmanager
async def reluctant(port: int) -> AsyncIterator[Wire]:
    """Open a socket whose peer has little room for what comes."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    line.setblocking(False)
    await asyncio.get_running_loop().sock_connect(line, ("127.0.0.1", port))
    wire = Wire(*await asyncio.open_connection(sock=line, limit=16_384))
    try:
        assert await wire.handshake() == 101
        yield wire
    finally:
        await wire.end()


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="the system does not say what the peer's TCP took")
async def test_a_large_message_to_a_slow_reader_is_no_silence() -> None:
    """A ping of the server's waits behind it, and so does the pong."""
    async with serving(send_large) as port, reluctant(port) as wire:
        left, began = len(SENT), time.monotonic()
        await wire.reader.readexactly(10)
        while left:
            left -= len(await wire.reader.readexactly(min(left, 20_000)))
            await asyncio.sleep(0.02)
        assert time.monotonic() - began > 2 * PONG_SECONDS
        for _ in range(3):  # the server is not gone, and asks on
            first, length = await asyncio.wait_for(wire.reader.readexactly(2), 10)
            assert first & 0x0F == PING, "closed although bytes moved"
            await wire.send(frame(PONG, await wire.reader.readexactly(length)))


async def test_a_peer_that_reads_nothing_is_closed() -> None:
    lost = asyncio.Event()

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        try:
            await send_large(scope, receive, send)
        finally:
            lost.set()

    async with serving(application) as port, reluctant(port):
        await asyncio.wait_for(lost.wait(), 20 * PONG_SECONDS + guards.CLOSE_SECONDS)


async def test_the_application_learns_of_bytes_of_an_incomplete_message() -> None:
    seen: list[float] = []

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        at = scope["extensions"][extensions.INCOMPLETE]["at"]
        await send({"type": "websocket.accept", "subprotocol": "delivery.v1"})
        for _ in range(2):
            message = asyncio.ensure_future(receive())
            while not message.done():
                seen.append(at())
                await asyncio.sleep(0.01)
            assert (await message)["type"] == "websocket.receive"
            seen.append(at())
        await send({"type": "websocket.close"})

    async with peer_of(application) as wire:
        began = time.monotonic()
        for opcode in (BINARY, TEXT):
            await drip(wire, frame(opcode, b"x" * LARGE), seconds=0.5)
        wire.read()  # not before: it answers pings, in the middle of a frame
        await wire.closes()
    assert seen[0] == seen[-1] == 0.0, "nothing is under way before the first and after the last"
    while_coming = [at for at in seen if at]
    assert len(while_coming) > 10
    assert began <= while_coming[0]
    assert while_coming == sorted(while_coming)
    assert while_coming[-1] - while_coming[0] > 0.5
