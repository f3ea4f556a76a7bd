"""The network between one client and the server: as fast as told, and torn apart where told.

Knows bytes and connections, nothing of WebSocket: a cut is a TCP reset to both sides without a closing frame, which is
what a client reports as 1006.
"""

from __future__ import annotations

import asyncio
import enum
import socket
import struct
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

BLOCK_BYTES = 65_536
#: The kernel's own are megabytes: with them the bytes would be far ahead of the clock, and of the cuts.
SOCKET_BUFFER_BYTES = 262_144
END_OF_HANDSHAKE = b"\r\n\r\n"
#: How long one side may take to end after the other has.
LAST_WORDS_SECONDS = 5.0
BURST_SECONDS = 0.1
SHORTEST_SLEEP_SECONDS = 0.005  # shorter ones cost more than they slow down
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Direction(enum.Enum):
    """Which way the payload goes; only that way is counted, slowed down and the place for cuts."""

    TO_SERVER = enum.auto()
    TO_CLIENT = enum.auto()


class Proxy:
    """A port on 127.0.0.1 through which one client reaches the server. `async with`; one connection at a time counts.

    `cuts`: positions in the payload, bytes, ascending. `rate`: bytes per second. `on_cut` is called with the position,
    right after the cut.
    """

    def __init__(
        self, server_port: int, direction: Direction, *, cuts: Sequence[int], rate: float, on_cut: Callable[[int], None]
    ) -> None:
        self.port = 0
        self.position = 0
        """Where in the payload the bytes are that passed last, as far as `resume_at` was told; framing counts as payload."""
        self.cuts_left = list(cuts)
        self.cutting = True
        """False puts the cuts that come meanwhile off."""
        self._server_port = server_port
        self._direction = direction
        self._rate = rate
        self._on_cut = on_cut
        self._resumed_at = 0
        self._passed = 0
        self._free_at = 0.0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self._server = await asyncio.start_server(self._accept, sock=listener, limit=BLOCK_BYTES)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    def resume_at(self, offset: int) -> None:
        """Take `offset` as the position where this connection's payload bytes began: its client said so."""
        self._resumed_at = offset
        self.position = offset + self._passed

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            return
        self._connections.add(task)
        try:
            await self._connect(reader, writer)
        except asyncio.CancelledError:
            pass  # the proxy is being closed; asyncio's streams would report it as an error
        finally:
            _reset(writer)
            self._connections.discard(task)

    async def _connect(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await self._reach_server()
        except OSError:
            return  # nobody listens there at the moment: the client finds its connection refused
        self._passed, self.position = 0, self._resumed_at
        counted = self._direction is Direction.TO_SERVER
        pumps = {
            asyncio.create_task(self._pump(from_client, to_server, counted=counted)),
            asyncio.create_task(self._pump(from_server, to_client, counted=not counted)),
        }
        try:
            done, rest = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if rest and not any(pump.result() for pump in done):
                await asyncio.wait(rest, timeout=LAST_WORDS_SECONDS)
        finally:
            _reset(to_server)  # before anything that may be cancelled
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)

    async def _reach_server(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        try:
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self._server_port))
        except BaseException:
            connection.close()
            raise
        return await asyncio.open_connection(sock=connection, limit=BLOCK_BYTES)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool) -> bool:
        """Pass on what comes until `reader` ends, and then that it ended. Return whether the connection was cut.

        Where nobody takes it any more it is read all the same: a socket that is closed with bytes unread resets, and
        a reset may overtake the other side's last words.
        """
        try:
            # Not counted: however small the payload, what is cut is a WebSocket.
            listening = await _write(writer, await reader.readuntil(END_OF_HANDSHAKE))
            while block := await reader.read(BLOCK_BYTES):
                if listening and counted:
                    block, cut = self._up_to_cut(block)
                    listening = await _write(writer, block)
                    if cut:
                        self._on_cut(self.position)
                        return True
                    await self._slow_down(len(block))
                elif listening:
                    listening = await _write(writer, block)
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass  # for the other side an end as any other: none of them has a closing frame
        try:
            writer.write_eof()
        except OSError:
            pass
        return False

    def _up_to_cut(self, block: bytes) -> tuple[bytes, bool]:
        """Count a block. Return what of it lies before the next cut, and whether that comes now."""
        cut = self.cutting and bool(self.cuts_left) and self.position + len(block) >= self.cuts_left[0]
        if cut:
            block = block[: max(0, self.cuts_left.pop(0) - self.position)]
        self._passed += len(block)
        self.position = self._resumed_at + self._passed
        return block, cut

    async def _slow_down(self, count: int) -> None:
        now = time.monotonic()
        self._free_at = max(now - BURST_SECONDS, self._free_at) + count / self._rate
        if self._free_at - now > SHORTEST_SLEEP_SECONDS:
            await asyncio.sleep(self._free_at - now)


async def _write(writer: asyncio.StreamWriter, block: bytes) -> bool:
    """Write and return True; False where the other side has gone."""
    try:
        writer.write(block)
        await writer.drain()
        return True
    except OSError:
        return False


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close at once. Where the other side has not, it finds its connection reset."""
    if (connection := writer.get_extra_info("socket")) is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    writer.transport.abort()
