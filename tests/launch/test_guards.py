"""The bounds that uvicorn does not have, on a real server in this process, with times that a test can wait for."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
import websockets

from delivery.websocket import extensions
from delivery.websocket import uvicorn as guards
from delivery.websocket.server import WebOptions
from tests.launch.live import free_port

HEAD_SECONDS = 0.4
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def hello(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """An ASGI app that reads the whole body and says its length."""
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = str(length).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def serving(application: Any) -> AsyncIterator[int]:
    """Serve an ASGI application as `delivery_web` does; yields the port."""
    port = free_port()
    options = WebOptions(
        host="127.0.0.1", port=port, message_limit=2**20, proxy_headers=False, forwarded_allow_ips=None
    )
    server = uvicorn.Server(options.config(application))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield port
    finally:
        server.should_exit = True
        await task


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setattr(guards, "HEAD_SECONDS", HEAD_SECONDS)
    async with serving(hello) as port:
        yield port


@pytest.fixture
async def streams(port: int) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    yield reader, writer
    writer.close()


async def ends(reader: asyncio.StreamReader) -> float:
    """Return how long it takes until the server ends TCP, in seconds."""
    began = time.monotonic()
    try:
        await asyncio.wait_for(reader.read(), 5)
    except ConnectionError:
        pass
    return time.monotonic() - began


@pytest.mark.parametrize(
    "sent", [b"", b"GET", b"GET / HTTP/1.1\r\nHost: x\r\nX: "], ids=["nothing", "a word", "a part"]
)
async def test_a_head_that_does_not_come_is_waited_for_a_while(streams: Streams, sent: bytes) -> None:
    reader, writer = streams
    writer.write(sent)
    assert HEAD_SECONDS / 2 < await ends(reader) < 4


async def test_a_head_a_byte_at_a_time_gains_no_time(streams: Streams) -> None:
    reader, writer = streams
    ending = asyncio.create_task(ends(reader))
    for byte in b"GET / HTTP/1.1\r\n" * 10:
        if ending.done():
            break
        writer.write(bytes([byte]))
        await asyncio.sleep(0.02)
    assert await ending < 3


async def test_a_slow_body_has_its_time(streams: Streams) -> None:
    reader, writer = streams
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
    for _ in range(10):
        await asyncio.sleep(HEAD_SECONDS / 4)
        writer.write(b"x")
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n10"), 5)).startswith(b"HTTP/1.1 200")


async def test_a_large_body_behind_its_head_is_no_large_head(streams: Streams) -> None:
    reader, writer = streams
    size = 4 * guards.HEAD_BYTES
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 200")


async def test_a_second_request_has_its_own_bounds(streams: Streams) -> None:
    reader, writer = streams
    for _ in range(3):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n0"), 5)
        await asyncio.sleep(HEAD_SECONDS)  # between requests uvicorn's own timeout holds
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * (2 * guards.HEAD_BYTES))
    await asyncio.sleep(0.05)
    writer.write(b"y")
    assert b"400" in await asyncio.wait_for(reader.read(64), 5)


SHARED = bytes(range(256)) * 1024


async def pieces(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """An ASGI app that sends messages of several sizes in pieces, and closes; the size of each comes first, as text."""
    await receive()
    await send({"type": "websocket.accept"})
    assert extensions.PIECES in scope["extensions"]
    for size in (1, 113, 114, 65_523, 65_524, 262_144):
        await send({"type": "websocket.send", "text": str(size)})
        await send({"type": extensions.PIECES, "pieces": (b"twelve bytes", memoryview(SHARED)[:size])})
    await send({"type": "websocket.close"})
    with pytest.raises(RuntimeError):
        await send({"type": extensions.PIECES, "pieces": (b"late",)})


async def test_a_message_in_pieces_comes_as_one_in_its_place() -> None:
    async with serving(pieces) as port, websockets.connect(f"ws://127.0.0.1:{port}/", compression=None) as client:
        came = [message async for message in client]
    for size, data in zip(came[::2], came[1::2], strict=True):
        assert data == b"twelve bytes" + SHARED[: int(size)]
    assert len(came) == 12


async def test_a_connection_that_is_gone_is_freed_at_once() -> None:
    """Nothing of it is left for the collector of cycles, which stops the whole process when it comes by."""

    async def accept(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    def left() -> list[str]:
        ours = (guards.GuardedHttp, guards.GuardedWebSocket)
        return [type(one).__name__ for one in gc.get_objects() if isinstance(one, ours)]

    async with serving(accept) as port:
        gc.collect()
        gc.disable()
        try:
            async with websockets.connect(f"ws://127.0.0.1:{port}/") as client:
                await client.send("x")
                await asyncio.sleep(0.05)
                assert left() == ["GuardedWebSocket"]
            guards_seconds = guards.CLOSE_SECONDS + 1.0  # it may be given up for as long
            deadline = time.monotonic() + guards_seconds + 5
            while left() and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
            assert not left()
        finally:
            gc.enable()


TEXTS = ["", "x", "é" * 62, "é" * 63, "x" * 65_535, "x" * 65_536, "\U0001f600" * 50_000]


async def texts(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """An ASGI app that sends texts of several sizes, between other messages, and closes."""
    await receive()
    with pytest.raises(RuntimeError):
        await send({"type": "websocket.send", "text": "early"})
    await send({"type": "websocket.accept"})
    for text in TEXTS:
        await send({"type": "websocket.send", "text": text})
        await send({"type": "websocket.send", "bytes": text.encode(), "text": None})
    await send({"type": "websocket.close", "code": 4000})
    with pytest.raises(RuntimeError):
        await send({"type": "websocket.send", "text": "late"})


@pytest.mark.parametrize("compression", [None, "deflate"])
async def test_a_text_comes_whole_and_in_its_place(compression: str | None) -> None:
    async with serving(texts) as port, websockets.connect(f"ws://127.0.0.1:{port}/", compression=compression) as client:
        came = [await client.recv() for _ in range(2 * len(TEXTS))]
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await client.recv()
    assert came[::2] == TEXTS
    assert came[1::2] == [text.encode() for text in TEXTS]
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4000


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def test_a_peer_that_ends_without_reading_is_gone_at_once() -> None:
    """All that waits to be sent to it will never go: uvicorn alone waits for that until its pings find out."""
    full, gone = asyncio.Event(), asyncio.Event()

    async def flood(send: Any) -> None:
        while True:
            sending = asyncio.ensure_future(send({"type": "websocket.send", "bytes": bytes(262_144)}))
            if not (await asyncio.wait([sending], timeout=0.5))[0]:
                full.set()
            await sending

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        flooding = asyncio.ensure_future(flood(send))
        assert (await receive())["type"] == "websocket.disconnect"
        gone.set()
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)

    async with serving(application) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(UPGRADE)
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.wait_for(full.wait(), 10)
        writer.write_eof()
        await asyncio.wait_for(gone.wait(), 3)
        writer.transport.abort()
