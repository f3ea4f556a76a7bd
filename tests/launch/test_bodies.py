"""Bodies of HTTP requests: refused by their declared length, or cut at the limit, before the application spools them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from delivery.websocket import uvicorn as guarded
from delivery.websocket.body_limit import BodyLimit
from delivery.websocket.server import WebOptions
from tests.launch.live import free_port
from tests.launch.test_guards import Streams, hello

MOST = 100_000
LIMIT = BodyLimit(MOST, ("/stream/",))
FREE = guarded.FREE_BODY_BYTES
BUDGETED = BodyLimit(4 * FREE, ("/stream/",), budget=4 * FREE)


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
    async with serving(application, limit) as port, connection(port) as streams:
        yield streams


@contextlib.asynccontextmanager
async def serving(application: Application, limit: BodyLimit) -> AsyncIterator[int]:
    port = free_port()
    options = WebOptions(host="127.0.0.1", port=port, message_limit=2**20, proxy_headers=False, body_limit=limit)
    server = uvicorn.Server(options.config(application))
    task = asyncio.create_task(server._serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield port
    finally:
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def connection(port: int) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


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


async def until(application: Application, size: int) -> None:
    """Wait until the application was given `size` bytes in all."""
    async with asyncio.timeout(5):
        while application.bytes < size:
            await asyncio.sleep(0.01)


async def test_bodies_beyond_the_budget_of_all_are_told_to_come_again() -> None:
    """Each by itself is within its limit; together they would fill the disk, before anybody was asked for a login."""
    application = Application()
    async with serving(application, BUDGETED) as port, contextlib.AsyncExitStack() as stack:
        for number in range(1, 3):  # each holds what it sent beyond the free part: the last byte is missing
            _, writer = await stack.enter_async_context(connection(port))
            writer.write(head(Content_Length=3 * FREE) + bytes(3 * FREE - 1))
            await until(application, number * (3 * FREE - 1))
        reader, writer = await stack.enter_async_context(connection(port))
        writer.write(head(Transfer_Encoding="chunked") + chunked(8_000_000))
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 5\r\n" in answer
        await asyncio.wait_for(application.ended_early.wait(), 5)
        assert application.bytes <= 2 * (3 * FREE - 1) + FREE + 10_000


async def test_small_and_streamed_bodies_pass_whatever_others_hold() -> None:
    application = Application()
    async with serving(application, BUDGETED) as port, contextlib.AsyncExitStack() as stack:
        for number in range(1, 3):
            _, writer = await stack.enter_async_context(connection(port))
            writer.write(head(Content_Length=3 * FREE) + bytes(3 * FREE - 1))
            await until(application, number * (3 * FREE - 1))
        for path, size in (("/", FREE), ("/stream/", 8 * FREE)):
            reader, writer = await stack.enter_async_context(connection(port))
            writer.write(head(path, Content_Length=size) + bytes(size))
            assert await status(reader) == 200


@pytest.mark.parametrize("end", ["answered", "lost", "refused", "kept alive"])
async def test_what_a_body_held_is_given_back(end: str) -> None:
    application = Application()
    async with serving(application, BUDGETED) as port:
        for _ in range(5):
            async with connection(port) as (reader, writer):
                before = application.bytes
                if end == "refused":
                    writer.write(head(Transfer_Encoding="chunked") + chunked(400_000))
                    assert await status(reader) == 413
                    await asyncio.wait_for(reader.read(), 5)
                elif end == "lost":
                    writer.write(head(Content_Length=4 * FREE) + bytes(3 * FREE))
                    await until(application, before + 3 * FREE)
                else:
                    for _ in range(3 if end == "kept alive" else 1):
                        writer.write(head(Content_Length=4 * FREE) + bytes(4 * FREE))
                        assert await status(reader) == 200
                        await reader.readexactly(len(str(4 * FREE)))
            if end == "lost":
                await asyncio.wait_for(application.ended_early.wait(), 5)
                application.ended_early.clear()


async def test_a_body_is_held_until_the_application_is_done_with_it() -> None:
    """Its peer is gone, and its file is not: Django's view runs on."""
    reading, done = asyncio.Event(), asyncio.Event()

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        if not reading.is_set():
            reading.set()
            await done.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async with serving(application, BUDGETED) as port:  # type: ignore[arg-type]
        async with connection(port) as (_, writer):
            writer.write(head(Content_Length=4 * FREE) + bytes(4 * FREE))
            await asyncio.wait_for(reading.wait(), 5)
        for expected in (503, 204):
            async with connection(port) as (reader, writer):
                writer.write(head(Content_Length=4 * FREE) + bytes(4 * FREE))
                assert await status(reader) == expected
            done.set()
            await asyncio.sleep(0.1)


async def test_a_body_of_which_nothing_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded, "BODY_SECONDS", 0.2)
    application = Application()
    async with connected(application) as (reader, writer):
        writer.write(head(Content_Length=MOST) + bytes(MOST - 1))
        assert await asyncio.wait_for(reader.read(), 5) == b""
        await asyncio.wait_for(application.ended_early.wait(), 5)


async def test_a_body_that_the_application_does_not_read_on_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded, "BODY_SECONDS", 0.2)

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await asyncio.sleep(0.7)
        await hello(scope, receive, send)

    async with connected(application) as (reader, writer):  # type: ignore[arg-type]
        writer.write(head(Content_Length=MOST) + bytes(MOST))
        assert await status(reader) == 200
