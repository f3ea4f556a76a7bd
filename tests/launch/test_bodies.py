"""Bodies of HTTP requests: refused by their declared length, or cut at the limit, before the application spools them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from delivery.websocket.body_limit import BodyLimit
from delivery.websocket.server import WebOptions
from tests.launch.live import free_port
from tests.launch.test_guards import Streams, hello

MOST = 100_000
LIMIT = BodyLimit(MOST, ("/stream/",))


class Application:
    """Reads whole bodies and says their length; counts what it was given, and what ended early."""

    def __init__(self) -> None:
        self.bytes = 0
        self.requests = 0
        self.ended_early = asyncio.Event()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.requests += 1

        async def counted() -> Any:
            message = await receive()
            self.bytes += len(message.get("body", b""))
            if message["type"] == "http.disconnect":
                self.ended_early.set()
            return message

        await hello(scope, counted, send)


@contextlib.asynccontextmanager
async def connected(application: Application, limit: BodyLimit = LIMIT) -> AsyncIterator[Streams]:
    port = free_port()
    options = WebOptions(host="127.0.0.1", port=port, message_limit=2**20, proxy_headers=False, body_limit=limit)
    server = uvicorn.Server(options.config(application))
    task = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        server.should_exit = True
        await task


def head(path: str = "/", **lines: object) -> bytes:
    text = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{text}\r\n".encode()


def chunked(size: int) -> bytes:
    piece = b"%x\r\n" % 10_000 + bytes(10_000) + b"\r\n"
    return piece * (size // 10_000)


async def status(reader: asyncio.StreamReader) -> int:
    return int((await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).split()[1])


async def test_a_body_of_the_limit_passes() -> None:
    application = Application()
    async with connected(application) as (reader, writer):
        for _ in range(2):  # each request by itself
            writer.write(head(Content_Length=MOST) + bytes(MOST))
            assert await status(reader) == 200
            assert await reader.readexactly(6) == str(MOST).encode()
            writer.write(head(Transfer_Encoding="chunked") + chunked(MOST) + b"0\r\n\r\n")
            assert await status(reader) == 200
            assert await reader.readexactly(6) == str(MOST).encode()


async def test_a_declared_length_above_it_is_refused_at_once() -> None:
    application = Application()
    async with connected(application) as (reader, writer):
        writer.write(head(Content_Length=MOST + 1, Expect="100-continue"))
        assert await status(reader) == 413
        assert b"at most 100000 bytes" in await asyncio.wait_for(reader.read(), 5)
        assert application.bytes == 0


async def test_the_answer_is_not_lost_on_a_client_that_goes_on_sending() -> None:
    application = Application()
    async with connected(application) as (reader, writer):
        writer.write(head(Content_Length=8_000_000) + bytes(8_000_000))
        assert await status(reader) == 413
        assert b"at most 100000 bytes" in await asyncio.wait_for(reader.read(), 5)
        assert application.bytes == 0


async def test_a_chunked_body_is_cut_at_the_limit() -> None:
    application = Application()
    async with connected(application) as (reader, writer):
        writer.write(head(Transfer_Encoding="chunked") + chunked(8_000_000))
        assert await status(reader) == 413
        await asyncio.wait_for(reader.read(), 5)
        await asyncio.wait_for(application.ended_early.wait(), 5)
        assert application.bytes <= MOST


async def test_a_body_behind_an_answer_ends_the_connection() -> None:
    answered = asyncio.Event()

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"early", "more_body": True})
        answered.set()
        while (await receive())["type"] != "http.disconnect":
            pass

    async with connected(application) as (reader, writer):  # type: ignore[arg-type]
        writer.write(head(Transfer_Encoding="chunked") + chunked(50_000))
        assert await status(reader) == 200
        await answered.wait()
        writer.write(chunked(100_000))
        with contextlib.suppress(ConnectionError):
            assert b"413" not in await asyncio.wait_for(reader.read(), 5)


@pytest.mark.parametrize(
    ("path", "limit", "passes"),
    [
        ("/stream/a", LIMIT, True),
        ("/stream", LIMIT, False),
        ("/other/stream/", LIMIT, False),
        ("/any", BodyLimit(0), True),
        ("/any", BodyLimit(MOST), False),
    ],
)
async def test_streaming_paths_and_no_limit(path: str, limit: BodyLimit, *, passes: bool) -> None:
    application = Application()
    async with connected(application, limit) as (reader, writer):
        writer.write(head(path, Content_Length=3 * MOST) + bytes(3 * MOST))
        assert await status(reader) == (200 if passes else 413)
