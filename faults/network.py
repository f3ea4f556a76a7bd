"""The network between one client and the server: a TCP proxy that a trial slows down, cuts, stops or slices.

It reads WebSocket's frame headers on their way (never their content), to cut exactly at a frame's boundary, or one byte
before or after.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from dataclasses import dataclass, field, replace

from faults.swallower import Swallower

BLOCK_BYTES = 65_536
SOCKET_BUFFER_BYTES = 131_072
READ_SECONDS = 0.2  # in which a peer reads what has come before its connection is reset
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
UP, DOWN = "up", "down"


@dataclass
class Weather:
    """What the network is like now; changes act at once, on every connection but those that are stuck.

    `rate`: bytes per second each way. `slice_bytes`: at most so much at a time. `delay`: seconds each way. `life`:
    seconds after which a connection is cut. `refusing`: new connections are refused. `most_message`: bytes of the largest
    message that passes, on connections that are opened from now on; larger ones are swallowed without a word.
    """

    rate: float = 0.0
    slice_bytes: int = BLOCK_BYTES
    delay: float = 0.0
    life: float = 0.0
    refusing: bool = False
    most_message: int | None = None


@dataclass(frozen=True)
class Cut:
    """Where to end a connection: `offset` (-1, 0, 1) bytes from the end of the frame after `frames` others, one way."""

    direction: str
    frames: int
    offset: int


@dataclass
class Frames:
    """Where the frames of one direction end: fed with what passes, after the HTTP handshake."""

    to_end: int = 0  # bytes until the end of the frame that is passing
    _started: bool = False
    _header: bytearray = field(default_factory=bytearray)

    def ends_in(self, block: bytes) -> list[int]:
        """Return the positions in `block` (exclusive) where frames end; take the block as passed."""
        found: list[int] = []
        at = 0
        if not self._started:
            self._header += block
            end = self._header.find(b"\r\n\r\n")
            if end < 0:
                return found
            at = len(block) - (len(self._header) - end - 4)
            self._started = True
            self._header.clear()
        while at < len(block):
            if self.to_end:
                step = min(self.to_end, len(block) - at)
                self.to_end -= step
                at += step
            else:
                self._header.append(block[at])
                at += 1
                length = self._length()
                if length is None:
                    continue
                self._header.clear()
                self.to_end = length
            if self.to_end == 0 and not self._header:
                found.append(at)
        return found

    def _length(self) -> int | None:
        """Return the payload's length (with the mask) once the header is there."""
        head = self._header
        if len(head) < 2:
            return None
        short = head[1] & 0x7F
        extra = {126: 2, 127: 8}.get(short, 0)
        mask = 4 if head[1] & 0x80 else 0
        if len(head) < 2 + extra + mask:
            return None
        return int.from_bytes(head[2 : 2 + extra]) if extra else short


@dataclass(eq=False)
class Connection:
    """One connection through the proxy. `stuck`: directions in which nothing passes any more, until `flow`."""

    to_client: asyncio.StreamWriter
    to_server: asyncio.StreamWriter
    began: float
    stuck: set[str] = field(default_factory=set)
    flow: asyncio.Event = field(default_factory=asyncio.Event)
    cut_at: Cut | None = None
    one_more: str = ""  # the direction in which one byte more is to pass before the cut
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def cut(self) -> None:
        self.gone.set()


async def end_proxy(server: asyncio.Server | None, tasks: set[asyncio.Task[None]]) -> None:
    """Take no more connections, and end those that a proxy serves in `tasks`."""
    if server is not None:
        server.close()
    for task in list(tasks):
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


class Network:
    """A port on 127.0.0.1 that leads to the server. `async with`."""

    def __init__(self, server_port: int, *, rate: float = 0.0) -> None:
        self.port = 0
        self.weather = Weather(rate=rate)
        self.connections: list[Connection] = []
        self.first_cut: Cut | None = None  # for the next connection, from its first frame on
        self.cuts_at_frames = 0
        self.swallowed = 0  # messages
        self.bytes_up = 0
        self.bytes_down = 0
        self._server_port = server_port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._free_at = {UP: 0.0, DOWN: 0.0}

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/delivery/"

    async def __aenter__(self) -> Network:
        listener = socket.socket()
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            listener.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self._server = await asyncio.start_server(self._accept, sock=listener, limit=BLOCK_BYTES)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await end_proxy(self._server, self._tasks)

    # -- faults ------------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Reset every connection, now."""
        for connection in list(self.connections):
            connection.cut()

    def cut_at_boundary(self, cut: Cut) -> None:
        """End the newest connection there, counted from now on."""
        if self.connections:
            self.connections[-1].cut_at = cut

    def swallow(self, *directions: str) -> list[Connection]:
        """Let nothing pass in these directions on what is connected now; new connections work. Returns those stuck."""
        stuck = list(self.connections)
        for connection in stuck:
            connection.stuck |= set(directions)
        return stuck

    # -- passing on --------------------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
        try:
            if not self.weather.refusing:
                await self._connect(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            reset(writer)
            if task is not None:
                self._tasks.discard(task)

    async def _connect(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        from_server, to_server = await self._dial()
        connection = Connection(to_client, to_server, time.monotonic(), cut_at=self.first_cut)
        self.first_cut = None
        self.connections.append(connection)
        pumps = [
            asyncio.create_task(self._pump(connection, UP, from_client, to_server)),
            asyncio.create_task(self._pump(connection, DOWN, from_server, to_client)),
        ]
        cutting = asyncio.create_task(self._until_cut(connection))
        try:
            done, rest = await asyncio.wait([*pumps, cutting], return_when=asyncio.FIRST_COMPLETED)
            if cutting not in done:
                await asyncio.wait(rest, timeout=3.0, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in [*pumps, cutting]:
                one.cancel()
            await asyncio.wait([*pumps, cutting])
            self.connections.remove(connection)
            reset(to_server)

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the server. A network holds little: the kernel would take in all of a payload that is slow."""
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        try:
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self._server_port))
        except BaseException:
            connection.close()
            raise
        return await asyncio.open_connection(sock=connection, limit=BLOCK_BYTES)

    async def _until_cut(self, connection: Connection) -> None:
        if self.weather.life:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.weather.life):
                    await connection.gone.wait()
        else:
            await connection.gone.wait()

    async def _pump(
        self, connection: Connection, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        frames = Frames()
        most = self.weather.most_message
        swallower = None if most is None else Swallower(most)
        with contextlib.suppress(OSError):
            while block := await reader.read(self.weather.slice_bytes):
                block, cut = self._up_to_cut(connection, direction, frames, block)
                if direction in connection.stuck:
                    await connection.flow.wait()
                await self._travel(direction, len(block))
                if swallower is not None:
                    before, block = swallower.swallowed, swallower.passed(block)
                    self.swallowed += swallower.swallowed - before
                writer.write(block)
                await writer.drain()
                if cut:
                    self.cuts_at_frames += 1
                    await self._end(connection, writer)
                    return
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def _end(self, connection: Connection, writer: asyncio.StreamWriter) -> None:
        """Cut a connection so that what has passed arrives: a reset takes back what its peer has not read yet."""
        connection.stuck |= {UP, DOWN}
        with contextlib.suppress(OSError):
            writer.write_eof()
        await asyncio.sleep(READ_SECONDS)
        connection.cut()

    def _up_to_cut(self, connection: Connection, direction: str, frames: Frames, block: bytes) -> tuple[bytes, bool]:
        """Return what of a block may pass, and whether the connection is to be cut then."""
        if connection.one_more == direction:
            return block[:1], True
        for end in frames.ends_in(block):
            plan = connection.cut_at
            if plan is None or plan.direction != direction:
                break
            if plan.frames > 0:
                connection.cut_at = replace(plan, frames=plan.frames - 1)
                continue
            connection.cut_at = None
            if end + plan.offset <= len(block):
                return block[: end + plan.offset], True
            connection.one_more = direction
        return block, False

    async def _travel(self, direction: str, count: int) -> None:
        if direction == UP:
            self.bytes_up += count
        else:
            self.bytes_down += count
        weather = self.weather
        wait = weather.delay
        if weather.rate:
            now = time.monotonic()
            self._free_at[direction] = max(now - 0.05, self._free_at[direction]) + count / weather.rate
            wait += max(0.0, self._free_at[direction] - now)
        if wait > 0.002:
            await asyncio.sleep(wait)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close at once, with a TCP reset."""
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    writer.transport.abort()
