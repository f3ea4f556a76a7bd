"""A TCP proxy between clients and a server of this machine: cuts, delays, throttles, holds and swallows.

It reads the headers of WebSocket frames on their way (never their content), to cut exactly at a frame's boundary, or one
byte before or after, and to take out large messages. Cuts are TCP resets without a closing frame: clients report 1006.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from rig.frames import Frames, Limit, Part

#: The kernel's own buffers are megabytes: with them the bytes would be far ahead of the clock, and of the cuts.
SOCKET_BUFFER_BYTES = 131_072
BLOCK_BYTES = 65_536
LAST_WORDS_SECONDS = 5.0  # how long one side may take to end after the other has
READ_SECONDS = 0.2  # in which a peer reads what has come before its connection is reset
SHORTEST_SLEEP_SECONDS = 0.002  # shorter ones cost more than they slow down
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Direction(enum.StrEnum):
    """Which way bytes go: to the server, or to the client."""

    UP = "up"
    DOWN = "down"


UP, DOWN = Direction.UP, Direction.DOWN


@dataclass
class Conditions:
    """What the network is like now; changes act at once, but for `life_seconds`, `most_message` and `over_limit`.

    Those are taken by connections that are opened from now on.
    """

    rate: float = 0.0
    """Bytes per second each way, of all connections together; 0 for no limit."""
    burst_seconds: float = 0.05
    """How much of that may pass at once after a pause."""
    delay: float = 0.0
    """Seconds that each block waits, each way."""
    slice_bytes: int = BLOCK_BYTES
    """At most so many bytes at a time."""
    life_seconds: float = 0.0
    """After how long each connection is cut; 0 for never."""
    refusing: bool = False
    """New connections are reset at once."""
    most_message: int | None = None
    """Bytes of the largest message that passes, either way. A message in several frames counts frame by frame."""
    over_limit: Literal["swallow", "close", "reset"] = "swallow"
    """What comes of a larger one: nothing but that is lost, or its connection is closed, or reset."""


@dataclass(frozen=True)
class CutAtByte:
    """Cut after so many bytes one way, which the handshake does not count for. The reset may overtake the last of them."""

    direction: Direction
    byte: int


@dataclass(frozen=True)
class CutAtFrame:
    """Cut `offset` (-1, 0, 1) bytes from the end of the frame after `frames` others, one way. All before that arrives."""

    direction: Direction
    frames: int
    offset: int = 0


@dataclass(eq=False)
class Connection:
    """One connection through the proxy. `number`: from 1. `cut_at`: where it is to be cut."""

    number: int
    to_client: asyncio.StreamWriter
    to_server: asyncio.StreamWriter
    cut_at: CutAtByte | CutAtFrame | None = None
    passed: dict[Direction, int] = field(default_factory=lambda: {UP: 0, DOWN: 0})
    """Bytes that passed each way, without the handshake."""
    _held: set[Direction] = field(default_factory=set)
    _released: asyncio.Event = field(default_factory=asyncio.Event)
    _one_more: Direction | None = None  # the way in which one byte more is to pass before the cut
    _gone: asyncio.Event = field(default_factory=asyncio.Event)
    _politely: bool = False

    def cut(self) -> None:
        """Reset both sides, now."""
        self._gone.set()

    def close(self) -> None:
        """Close both sides, without a closing frame and without a reset."""
        self._politely = True
        self._gone.set()

    def drop_client(self) -> None:
        """Have the client see a cut at once, and the server nothing."""
        self.to_client.transport.abort()

    def hold(self, *directions: Direction) -> None:
        """Let nothing pass in these directions, until `release`."""
        self._held |= set(directions)

    def release(self) -> None:
        """Let what was held pass, and all that comes."""
        self._released.set()

    # -- for the proxy -----------------------------------------------------------------------------------------------

    async def until_passable(self, direction: Direction) -> None:
        """Wait while this direction is held."""
        if direction in self._held:
            await self._released.wait()

    async def until_gone(self, life_seconds: float) -> None:
        """Return once it is to end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(life_seconds or None):
                await self._gone.wait()

    def end(self) -> None:
        """End both sides, in the way that they are to end."""
        for writer in (self.to_client, self.to_server):
            writer.close() if self._politely else reset(writer)

    def cut_in(self, direction: Direction, parts: list[Part]) -> int | None:
        """Return after how many bytes of what comes the connection is to be cut, None where it is not."""
        if self._one_more == direction:
            return 1
        match self.cut_at:
            case CutAtByte() if self.cut_at.direction == direction:
                return self._cut_at_byte(self.cut_at, parts)
            case CutAtFrame() if self.cut_at.direction == direction:
                return self._cut_at_frame(parts)
        return None

    def _cut_at_byte(self, cut: CutAtByte, parts: list[Part]) -> int | None:
        handshake = sum(len(part.data) for part in parts if part.handshake)
        count = sum(len(part.data) for part in parts) - handshake
        left = max(0, cut.byte - self.passed[cut.direction])
        return handshake + left if count and left <= count else None

    def _cut_at_frame(self, parts: list[Part]) -> int | None:
        end = 0
        whole = sum(len(part.data) for part in parts)
        for part in parts:
            end += len(part.data)
            cut = self.cut_at
            if not part.ends or not isinstance(cut, CutAtFrame):
                continue
            if cut.frames > 0:
                self.cut_at = replace(cut, frames=cut.frames - 1)
                continue
            self.cut_at = None
            if end + cut.offset <= whole:
                return end + cut.offset
            self._one_more = cut.direction
        return None


class Forwarder:
    """A port on 127.0.0.1 that leads to another one. `async with`. Subclasses say in `_forward` what passes."""

    def __init__(self, server_port: int, *, buffer_bytes: int = SOCKET_BUFFER_BYTES) -> None:
        self.port = 0
        self.server_port = server_port
        self._buffer_bytes = buffer_bytes
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        listener = self._socket()
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self._server = await asyncio.start_server(self._accept, sock=listener, limit=BLOCK_BYTES)
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _socket(self) -> socket.socket:
        """Make a socket that holds little: the kernel would take in all of a payload that is slow."""
        made = socket.socket()
        made.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            made.setsockopt(socket.SOL_SOCKET, option, self._buffer_bytes)
        return made

    async def _accept(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            return
        self._tasks.add(task)
        try:
            if not self._refuses():
                from_server, to_server = await self._dial()
                await self._forward(from_client, to_client, from_server, to_server)
        except (OSError, asyncio.CancelledError):
            pass  # nobody listens there at the moment, or the proxy is being closed
        finally:
            if not to_client.is_closing():
                reset(to_client)
            self._tasks.discard(task)

    def _refuses(self) -> bool:
        return False

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        connection = self._socket()
        try:
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self.server_port))
        except BaseException:
            connection.close()
            raise
        return await asyncio.open_connection(sock=connection, limit=BLOCK_BYTES)

    async def _forward(
        self,
        from_client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        from_server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        """Pass on what comes, and end both sides."""
        raise NotImplementedError


class Proxy(Forwarder):
    """A port on 127.0.0.1 that leads to the server, under `conditions`.

    `cuts` says for each new connection, by its number from 1, where it is to be cut. `on_cut` is called after such a cut.
    """

    def __init__(
        self,
        server_port: int,
        conditions: Conditions | None = None,
        *,
        cuts: Callable[[int], CutAtByte | CutAtFrame | None] = lambda number: None,
        on_cut: Callable[[Connection], None] = lambda connection: None,
        buffer_bytes: int = SOCKET_BUFFER_BYTES,
    ) -> None:
        super().__init__(server_port, buffer_bytes=buffer_bytes)
        self.conditions = conditions or Conditions()
        self.cuts = cuts
        self.connections: list[Connection] = []
        """Those that are open, the newest last."""
        self.opened = 0
        """How many connections there have been."""
        self.planned_cuts = 0
        """How many of them were cut where they were to be."""
        self.over_limit = 0
        """How many messages were larger than `most_message`."""
        self.largest = 0
        """Bytes of the largest message that passed."""
        self._on_cut = on_cut
        self._free_at = {UP: 0.0, DOWN: 0.0}

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/delivery/"

    # -- faults ------------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Reset every connection, now."""
        for connection in self.connections:
            connection.cut()

    def cut_at(self, cut: CutAtByte | CutAtFrame) -> None:
        """Cut the newest connection there. Frames are counted from now on, bytes from its beginning."""
        if self.connections:
            self.connections[-1].cut_at = cut

    def hold(self, *directions: Direction) -> list[Connection]:
        """Let nothing pass in these directions (default: both) on what is connected now; new connections work.

        Returns those connections. What they hold passes after their `release`.
        """
        held = list(self.connections)
        for connection in held:
            connection.hold(*directions or (UP, DOWN))
        return held

    # -- passing on --------------------------------------------------------------------------------------------------

    def _refuses(self) -> bool:
        return self.conditions.refusing

    async def _forward(
        self,
        from_client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        from_server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        self.opened += 1
        connection = Connection(self.opened, to_client, to_server, cut_at=self.cuts(self.opened))
        self.connections.append(connection)
        pumps = [
            asyncio.create_task(self._pump(connection, UP, from_client, to_server)),
            asyncio.create_task(self._pump(connection, DOWN, from_server, to_client)),
        ]
        gone = asyncio.create_task(connection.until_gone(self.conditions.life_seconds))
        try:
            done, rest = await asyncio.wait([*pumps, gone], return_when=asyncio.FIRST_COMPLETED)
            if gone not in done:
                await asyncio.wait(rest, timeout=LAST_WORDS_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.connections.remove(connection)
            connection.end()  # before anything that may be cancelled
            for task in (*pumps, gone):
                task.cancel()
            await asyncio.wait([*pumps, gone])

    async def _pump(
        self, connection: Connection, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Pass on what comes until `reader` ends, and then that it ended.

        Where nobody takes it any more it is read all the same: a socket that is closed with bytes unread resets, and a
        reset may overtake the other side's last words.
        """
        frames, listening = Frames(), True
        limit = None if self.conditions.most_message is None else Limit(self.conditions.most_message)
        with contextlib.suppress(OSError):
            while block := await reader.read(self.conditions.slice_bytes):
                parts = list(frames.split(block))
                if (cut := connection.cut_in(direction, parts)) is not None:
                    parts = _first_bytes(parts, cut)
                await connection.until_passable(direction)
                await self._travel(direction, sum(len(part.data) for part in parts))
                passes = self._counted(connection, direction, parts, limit)
                listening = listening and await _write(writer, passes)
                if cut is not None:
                    await self._end_at_cut(connection, writer, at_once=connection.cut_at is not None)
                    return
        with contextlib.suppress(OSError):
            writer.write_eof()

    def _counted(self, connection: Connection, direction: Direction, parts: list[Part], limit: Limit | None) -> bytes:
        """Return what of the parts passes."""
        connection.passed[direction] += sum(len(part.data) for part in parts if not part.handshake)
        lengths = [part.length for part in parts if part.length is not None]
        if limit is None:
            self.largest = max([self.largest, *lengths])
            return b"".join(part.data for part in parts)
        before = limit.over
        passes = b"".join(map(limit.passed, parts))
        self.over_limit += limit.over - before
        self.largest = max([self.largest, *(length for length in lengths if length <= limit.most)])
        if limit.over and self.conditions.over_limit != "swallow":
            connection.close() if self.conditions.over_limit == "close" else connection.cut()
        return passes

    async def _travel(self, direction: Direction, count: int) -> None:
        now, wait = time.monotonic(), self.conditions.delay
        if rate := self.conditions.rate:
            free_at = max(now - self.conditions.burst_seconds, self._free_at[direction]) + count / rate
            self._free_at[direction] = free_at
            wait += max(0.0, free_at - now)
        if wait > SHORTEST_SLEEP_SECONDS:
            await asyncio.sleep(wait)

    async def _end_at_cut(self, connection: Connection, writer: asyncio.StreamWriter, *, at_once: bool) -> None:
        """Cut a connection, `at_once` or so that what has passed arrives: a reset takes back what is not yet read."""
        self.planned_cuts += 1
        self._on_cut(connection)
        if not at_once:
            connection.hold(UP, DOWN)
            with contextlib.suppress(OSError):
                writer.write_eof()
            await asyncio.sleep(READ_SECONDS)
        connection.cut()


def _first_bytes(parts: list[Part], count: int) -> list[Part]:
    """Return the first `count` bytes of the parts."""
    kept: list[Part] = []
    for part in parts:
        if count < len(part.data):
            return [*kept, replace(part, data=part.data[:count], length=None, ends=False)] if count else kept
        kept.append(part)
        count -= len(part.data)
    return kept


async def _write(writer: asyncio.StreamWriter, block: bytes) -> bool:
    """Write and return True; False where the other side has gone."""
    try:
        writer.write(block)
        await writer.drain()
        return True
    except OSError:
        return False


def reset(writer: asyncio.StreamWriter) -> None:
    """Close at once. Where the other side has not, it finds its connection reset."""
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    writer.transport.abort()
