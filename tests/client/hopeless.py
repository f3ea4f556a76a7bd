"""Peers that accept TCP and are no server of delivery.v1: what a client meets during deploys, and at wrong addresses."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\n"
ACCEPTING = SWITCHING + b"Upgrade: websocket\r\nConnection: Upgrade\r\n"


async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    pass


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    line: socket.socket = writer.get_extra_info("socket")
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def resets_after_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    await resets(reader, writer)


def answers(data: bytes) -> Behaviour:
    """Return what reads the request, answers `data` and closes."""

    async def behaviour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        await writer.drain()

    return behaviour


def status(code: int, *headers: bytes) -> Behaviour:
    lines = b"".join(header + b"\r\n" for header in headers)
    return answers(b"HTTP/1.1 %d Some Words\r\nContent-Length: 0\r\n%s\r\n" % (code, lines))


#: After these a client tries again.
PASSING: dict[str, Behaviour] = {
    "closes": closes,
    "resets": resets,
    "closes after the request": answers(b""),
    "resets after the request": resets_after_request,
    "half a status line": answers(b"HTTP/1.1 1"),
    "half a head": answers(SWITCHING + b"Upgrade: web"),
    "not HTTP": answers(b"220 mail.example.com ESMTP\r\n"),
    "TLS alert": answers(b"\x15\x03\x03\x00\x02\x02\x46"),
    "long status line": answers(b"HTTP/1.1 101 " + b"x" * 10_000 + b"\r\n\r\n"),
    "long header": answers(SWITCHING + b"X: " + b"x" * 10_000 + b"\r\n\r\n"),
    "many headers": answers(SWITCHING + b"X: x\r\n" * 200 + b"\r\n"),
    "strange encoding": answers(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: odd\r\n\r\n"),
    "no upgrade": answers(SWITCHING + b"\r\n"),
    "malformed upgrade": answers(SWITCHING + b"Upgrade: ,;\r\nConnection: Upgrade\r\n\r\n"),
    "no accept": answers(ACCEPTING + b"\r\n"),
    "accept of another key": answers(ACCEPTING + b"Sec-WebSocket-Accept: x\r\n\r\n"),
    "HTTP 500": status(500),
    "HTTP 502": status(502),
    "HTTP 503": status(503),
    "HTTP 429": status(429),
    "HTTP 599": status(599),
    "redirect to itself": status(302, b"Location: /"),
}

#: These are a clear end.
FINAL: dict[str, tuple[Behaviour, str]] = {
    "HTTP 200": (status(200), "HTTP 200 instead of opening a WebSocket"),
    "HTTP 400": (status(400), "HTTP 400 instead of opening a WebSocket"),
    "HTTP 401": (status(401), "the token is wrong or expired"),
    "HTTP 403": (status(403), "get a new token"),
    "HTTP 404": (status(404), "no WebSocket at this path"),
    "HTTP 405": (status(405), "no WebSocket at this path"),
    "HTTP 426": (status(426), "does not take WebSockets"),
    "redirect to https": (
        status(301, b"Location: https://name:password@example.test/ws/delivery/?secret"),
        "use wss://example.test/ws/delivery/ as the URL",
    ),
}


@asynccontextmanager
async def peer(behaviour: Behaviour) -> AsyncIterator[str]:
    """Serve connections by `behaviour` and close each after it; yields the URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await behaviour(reader, writer)
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws/delivery/"
