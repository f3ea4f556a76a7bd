"""Large values of Redis, written and read by an event loop: pipelined commands on a connection of their own.

What it buys: no caller waits for a connection, and only the kernel copies. Values are sent from the caller's buffers, and
read directly into the buffer that the caller gets. A pipeline of redis-py takes dozens of calls through its pool, retries and
timeouts, and copies its replies three times; a thread avoids the copies, but each value then crosses between threads.
Without this module redis-py's client does the same, more slowly. Opening the connection, with its login and options,
remains redis-py's.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, cast

import redis

from delivery.buffer.exchange import LINE_BYTES, refusal, setting
from delivery.buffer.pool import SOCKET_TIMEOUT_SECONDS, aclient, give_room, reporting

Data = bytes | bytearray | memoryview

IDLE_SECONDS = 25.0  # without a reply: who knows what is between us and Redis; a new connection costs a millisecond
SCRATCH_BYTES = 16_384
ROOM_BYTES = 32  # behind a value, for its end and what stands before the next: one read takes all of that


class _Pending:
    """The replies of one `put`, or the one reply of a `get`: `left` are still to come, of values or of words.

    The first that was an error counts. `values`: what came, None where it was not asked for.
    """

    __slots__ = ("done", "error", "left", "values")

    def __init__(self, left: int, values: list[Data | None] | None, done: asyncio.Future[list[Data | None]]) -> None:
        self.left = left
        self.values = values
        self.done = done
        self.error: Exception | None = None

    def take(self, value: Data | None) -> None:
        self.left -= 1
        if self.values is not None:
            self.values.append(value)

    def refuse(self, error: Exception) -> None:
        self.left = self.left - 1 if self.values is None else 0  # an error stands for all values
        self.error = self.error or error

    def end(self, error: Exception | None) -> None:
        if self.done.done():  # nobody waits any more
            return
        if error is None:
            self.done.set_result(self.values or [])
        else:
            self.done.set_exception(error)


class _Replies(asyncio.BufferedProtocol):
    """Reads the replies, which come in the order of the commands."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self._heard = time.monotonic()
        self._pending: deque[_Pending] = deque()
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._rest = b""  # of a line, not all of it here
        self._value: memoryview | None = None  # on its way in, with room behind it
        self._length = 0  # of that value
        self._filled = 0  # of its buffer

    @property
    def usable(self) -> bool:
        """Whether more can be written: the connection is open, and answered lately or has replies pending."""
        waited = bool(self._pending)
        return not self.transport.is_closing() and (waited or time.monotonic() - self._heard < IDLE_SECONDS)

    def expect(self, count: int, *, values: bool = False) -> asyncio.Future[list[Data | None]]:
        """Return what is done when so many more words have come, or so many `values` in one reply."""
        pending = _Pending(count, [] if values else None, asyncio.get_running_loop().create_future())
        self._pending.append(pending)
        return pending.done

    def give_up(self, error: Exception) -> None:
        """Abort the connection: no more replies come."""
        self._fail(error)
        self.transport.abort()

    # -- for the transport -------------------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._scratch if self._value is None else self._value[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._heard = time.monotonic()
        if self._value is None:
            self._read(self._rest + self._scratch[:nbytes])
            return
        self._filled += nbytes
        if self._filled >= self._length + 2:
            value, behind = self._value[: self._length], bytes(self._value[self._length : self._filled])
            self._value = None
            self._take(value)
            self._read(behind[2:])

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(redis.ConnectionError("Redis closed the connection"))

    def _fail(self, error: Exception) -> None:
        while self._pending:
            self._pending.popleft().end(error)

    # -- replies (the Redis serialization protocol) ------------------------------------------------------------------

    def _read(self, data: bytes) -> None:
        """Read whole lines and values; begin a value that is not all here."""
        self._rest = b""
        while data:
            line, end, behind = data.partition(b"\r\n")
            if not end:
                self._rest = data
                if len(data) > LINE_BYTES:
                    self.give_up(redis.InvalidResponse("a line without end"))
                return
            if not self._pending:
                self.give_up(redis.InvalidResponse("a reply that nobody waits for"))
                return
            length = self._read_line(line)
            if length is None:
                data = behind
            elif len(behind) >= length + 2:
                self._take(behind[:length])
                data = behind[length + 2 :]
            else:
                self._begin(length, behind)
                return

    def _read_line(self, line: bytes) -> int | None:
        """Take a line; return the length of the value that it announces."""
        pending, kind = self._pending[0], line[:1]
        if kind == b"$" and line != b"$-1":
            return int(line[1:])
        if kind == b"-":
            pending.refuse(refusal(line))
        elif kind in (b"$", b"_", b"+"):
            pending.take(None)
        elif line != b"*%d" % pending.left:
            self.give_up(redis.InvalidResponse("another reply than was asked for"))
            return None
        self._end(pending)
        return None

    def _begin(self, length: int, begun: bytes) -> None:
        self._value = memoryview(bytearray(length + ROOM_BYTES))
        self._value[: len(begun)] = begun
        self._length, self._filled = length, len(begun)

    def _take(self, value: Data) -> None:
        pending = self._pending[0]
        pending.take(value)
        self._end(pending)

    def _end(self, pending: _Pending) -> None:
        if not pending.left:
            self._pending.popleft().end(pending.error)


class Stream:
    """The connection: opened at the first command, and again after it was lost. Belongs to one event loop."""

    def __init__(self) -> None:
        self._replies: _Replies | None = None
        self._connection: Any = None  # redis-py's
        self._opening = asyncio.Lock()

    async def put(self, values: Iterable[tuple[str, Data]], seconds: int) -> None:
        """Set each value by its name, for so many seconds. Nobody may change the data until it returns.

        Raises `BufferUnavailable`: any of them may be missing then. Cancelling leaves the writing running.
        """
        pieces: list[Data] = []
        count = 0
        for name, data in values:
            head, tail = setting(name, len(data), seconds)
            pieces += (head, data, tail)
            count += 1
        await self._exchange(pieces, count, values=False)

    async def get(self, names: Sequence[str]) -> list[Data | None]:
        """Return the values of `names`, None for each that is not there. Raises `BufferUnavailable`."""
        return await self._exchange([_getting(names)], len(names), values=True)

    async def _exchange(self, pieces: Sequence[Data], replies: int, *, values: bool) -> list[Data | None]:
        with reporting():
            line = self._replies if self._replies is not None and self._replies.usable else await self._open()
            done = line.expect(replies, values=values)
            line.transport.writelines(pieces)
            try:
                async with asyncio.timeout(SOCKET_TIMEOUT_SECONDS):
                    return await done
            except TimeoutError:
                line.give_up(redis.TimeoutError("Redis does not answer"))
                raise

    async def _open(self) -> _Replies:
        async with self._opening:  # many ask at once; one connection serves them all
            if self._replies is not None and self._replies.usable:
                return self._replies
            await self.close()
            self._connection = aclient().connection_pool.make_connection()
            await self._connection.connect()
            transport = cast("asyncio.Transport", self._connection._writer.transport)
            give_room(transport.get_extra_info("socket"))
            self._replies = _Replies(transport)
            transport.pause_reading()  # uvloop looks at the kind of protocol only as it begins to read
            transport.set_protocol(self._replies)
            transport.resume_reading()
            return self._replies

    async def close(self) -> None:
        """Close the connection; who asks next opens another."""
        connection, self._connection, self._replies = self._connection, None, None
        if connection is not None:
            await connection.disconnect(nowait=True)


def _getting(names: Sequence[str]) -> bytes:
    """Return an MGET."""
    words = [b"MGET", *(name.encode() for name in names)]
    return b"*%d\r\n%b" % (len(words), b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))
