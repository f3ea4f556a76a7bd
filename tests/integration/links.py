"""A TCP proxy for links that are bad in one way each."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

from faults.swallower import Swallower

PIECE = 16 * 1024
LITTLE = 4 * 1024  # a link holds little: else the kernel takes in all that is slow


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
