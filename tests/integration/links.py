"""A TCP proxy for links that are bad in one way each.

One that swallows messages reads WebSocket's frame headers on their way (RFC 6455 section 5.2), never their content.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

PIECE = 16 * 1024
LITTLE = 4 * 1024  # a link holds little: else the kernel takes in all that is slow


class Swallower:
    """Passes one direction on, but for messages of more than `most` bytes, of which it says nothing to anybody."""

    def __init__(self, most: int) -> None:
        self.swallowed = 0
        self._most = most
        self._buffer = b""
        self._upgraded = False
        self._left = 0  # of the frame that is passing
        self._passes = True

    def passed(self, data: bytes) -> bytes:
        """Take what came; return what goes on."""
        self._buffer += data
        out = b""
        while (piece := self._next()) is not None:
            out += piece
        return out

    def _next(self) -> bytes | None:
        if not self._upgraded:
            return self._handshake()
        if not self._left and not self._begin():
            return None
        if not self._buffer:
            return None
        piece, self._buffer = self._buffer[: self._left], self._buffer[self._left :]
        self._left -= len(piece)
        return piece if self._passes else b""

    def _handshake(self) -> bytes | None:
        end = self._buffer.find(b"\r\n\r\n") + 4
        if end < 4:
            return None
        head, self._buffer, self._upgraded = self._buffer[:end], self._buffer[end:], True
        return head

    def _begin(self) -> bool:
        """Look at the next frame's header; return whether it is all here."""
        head = self._buffer[:14]
        if len(head) < 2:
            return False
        short = head[1] & 0x7F
        extra = {126: 2, 127: 8}.get(short, 0)
        if len(head) < 2 + extra:
            return False
        length = int.from_bytes(head[2 : 2 + extra], "big") if extra else short
        self._passes = length <= self._most
        self.swallowed += not self._passes
        self._left = 2 + extra + (4 if head[1] & 0x80 else 0) + length
        return True


class Link:
    """Forwards to a port on 127.0.0.1. `life_seconds` of each connection, None for ever; `bytes_per_second` each way.

    `most_message`: larger messages are swallowed, None for none.
    """

    def __init__(
        self,
        port: int,
        *,
        life_seconds: float | None = None,
        bytes_per_second: float = float("inf"),
        most_message: int | None = None,
    ) -> None:
        self.port = 0
        self.connections = 0
        self.swallowed = 0
        self._most_message = most_message
        self._piece = int(min(PIECE, max(64, bytes_per_second / 20)))
        self._target = port
        self._life_seconds = life_seconds
        self._bytes_per_second = bytes_per_second
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/delivery/"

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Link]:
        server = await asyncio.start_server(self._accept, sock=self._listener(), limit=PIECE)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in list(self._serving):
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)

    def _listener(self) -> socket.socket:
        listener = socket.socket()
        if self._piece < PIECE:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LITTLE)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LITTLE)
        listener.bind(("127.0.0.1", 0))
        return listener

    def cut(self) -> None:
        """Lose every connection that is open."""
        for task in self._serving:
            task.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there: asyncio.StreamWriter | None = None
        try:
            back, there = await asyncio.open_connection("127.0.0.1", self._target, limit=PIECE)
            async with asyncio.timeout(self._life_seconds), asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, there))
                both.create_task(self._pump(back, writer))
        except (TimeoutError, OSError, ExceptionGroup, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            if there is not None:
                there.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        swallower = None if self._most_message is None else Swallower(self._most_message)
        while data := await reader.read(self._piece):
            if swallower is not None:
                before, data = swallower.swallowed, swallower.passed(data)
                self.swallowed += swallower.swallowed - before
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(len(data) / self._bytes_per_second)
        raise ConnectionResetError("one side has closed")
