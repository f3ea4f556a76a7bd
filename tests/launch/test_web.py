"""The ASGI server of `delivery_web`: what it lets the application do between SIGTERM and the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from delivery.websocket.server import Server, WebOptions
from tests.launch.live import free_port

MESSAGE_LIMIT = 100_000


class Application:
    """Accepts every socket, sends back the length of each message, and closes with 1001 when told."""

    def __init__(self) -> None:
        self.going_away = asyncio.Event()
        self.closed_with: list[int] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        leaving = asyncio.create_task(self._leave(send))
        while (event := await receive())["type"] != "websocket.disconnect":
            await send({"type": "websocket.send", "text": str(len(event["bytes"]))})
        self.closed_with.append(event["code"])
        leaving.cancel()

    async def _leave(self, send: Any) -> None:
        await self.going_away.wait()
        await send({"type": "websocket.close", "code": 1001, "reason": "going away"})


@asynccontextmanager
async def serving(
    application: Application, before_close: Callable[[], Awaitable[None]] | None = None, **options: Any
) -> AsyncIterator[tuple[Server, str]]:
    web = WebOptions(host="127.0.0.1", port=free_port(), message_limit=MESSAGE_LIMIT, proxy_headers=False)
    server = Server(web.config(application), before_close=before_close, **options)
    running = asyncio.create_task(server.serve())
    async with asyncio.timeout(20):
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield server, f"ws://127.0.0.1:{web.port}/"
        finally:
            server.should_exit = True
            await running


async def close_code(client: ClientConnection) -> int | None:
    try:
        await client.recv()
    except ConnectionClosed:
        return client.close_code
    raise AssertionError("a message came instead of the close")


async def test_message_within_the_limit_passes() -> None:
    async with serving(Application()) as (_, url), connect(url, compression=None) as client:
        await client.send(bytes(MESSAGE_LIMIT))
        assert await client.recv() == str(MESSAGE_LIMIT)


async def test_compression_is_not_offered() -> None:
    async with serving(Application()) as (_, url), connect(url) as client:
        assert client.response is not None
        assert "Sec-WebSocket-Extensions" not in client.response.headers


async def test_sockets_close_with_the_code_of_the_application() -> None:
    application = Application()

    async def before_close() -> None:
        application.going_away.set()

    async with serving(application, before_close) as (server, url), connect(url) as client:
        server.should_exit = True
        assert await close_code(client) == 1001


async def test_without_a_hook_uvicorn_closes() -> None:
    async with serving(Application()) as (server, url), connect(url) as client:
        server.should_exit = True
        assert await close_code(client) == 1012


async def test_nobody_connects_while_it_drains() -> None:
    application = Application()
    refused = asyncio.Event()

    async def before_close() -> None:
        with pytest.raises(ConnectionRefusedError):
            await connect(url)
        refused.set()
        application.going_away.set()

    async with serving(application, before_close) as (server, url), connect(url) as client:
        server.should_exit = True
        assert await close_code(client) == 1001
    assert refused.is_set()


async def test_draining_has_a_bound(caplog: pytest.LogCaptureFixture) -> None:
    cancelled = asyncio.Event()

    async def before_close() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            cancelled.set()

    async with serving(Application(), before_close, drain_seconds=0.2) as (server, url), connect(url) as client:
        server.should_exit = True
        assert await close_code(client) == 1012
    assert cancelled.is_set()
    assert "sockets are still open after 0.2 s" in caplog.text


async def test_second_interrupt_ends_the_draining() -> None:
    async def before_close() -> None:
        server.force_exit = True
        await asyncio.sleep(600)

    async with serving(Application(), before_close, drain_seconds=600) as (server, url), connect(url) as client:
        server.should_exit = True
        assert await close_code(client) == 1012


async def test_failing_hook_is_logged_and_the_shutdown_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async def before_close() -> None:
        raise RuntimeError("Redis is away")

    with caplog.at_level(logging.ERROR):
        async with serving(Application(), before_close) as (server, url), connect(url) as client:
            server.should_exit = True
            assert await close_code(client) == 1012
    assert "Redis is away" in caplog.text
