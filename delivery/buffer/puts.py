"""Many large values on their way into Redis from an event loop, one behind the other on a connection of its own.

Nobody waits for a connection, and what is written is copied by the kernel alone. Each pipeline of redis-py goes through
its pool, retries and time limits in dozens of calls, which was a quarter of what taking in an upload cost a web
process. Opening the connection, with its login and options, remains redis-py's.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, cast

import redis

from delivery.buffer.clients import SOCKET_TIMEOUT_SECONDS, aclient, reporting

Data = bytes | bytearray | memoryview

IDLE_SECONDS = 25.0  # without a reply: who knows what is between us and Redis; a new connection costs a millisecond
LONGEST_REPLY_BYTES = 512
PIECES = 3  # that a command is written in: what stands before its data, the data, what stands behind


class _Pending:
    """The replies of one `put`: `left` are still to come; the first that was an error counts."""

    __slots__ = ("done", "error", "left")

    def __init__(self, left: int, done: asyncio.Future[None]) -> None:
        self.left = left
        self.done = done
        self.error: Exception | None = None

    def end(self, error: Exception | None) -> None:
        if self.done.done():  # nobody waits any more
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


class _Replies(asyncio.Protocol):
    """Counts the replies to SET, which come in the order of the commands."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self._heard = time.monotonic()
        self._pending: deque[_Pending] = deque()
        self._rest = b""

    @property
    def usable(self) -> bool:
        """Whether more can be written: the connection is there, and was heard of lately or is waited for."""
        return not self.transport.is_closing() and (
            bool(self._pending) or time.monotonic() - self._heard < IDLE_SECONDS
        )

    def expect(self, replies: int) -> asyncio.Future[None]:
        """Return what is done when so many more replies have come."""
        pending = _Pending(replies, asyncio.get_running_loop().create_future())
        self._pending.append(pending)
        return pending.done

    def data_received(self, data: bytes) -> None:
        self._heard = time.monotonic()
        data = self._rest + data
        while True:
            line, end, rest = data.partition(b"\r\n")
            if not end:
                break
            data = rest
            self._take(line)
        self._rest = data
        if len(data) > LONGEST_REPLY_BYTES:
            self.give_up(redis.InvalidResponse("a reply without end"))

    def _take(self, line: bytes) -> None:
        if not self._pending or line[:1] not in (b"+", b"-"):
            self.give_up(redis.InvalidResponse("a reply that nobody waits for"))
            return
        pending = self._pending[0]
        pending.left -= 1
        if line[:1] == b"-":
            pending.error = pending.error or redis.ResponseError(line[1:81].decode(errors="replace"))
        if not pending.left:
            self._pending.popleft().end(pending.error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(redis.ConnectionError("Redis closed the connection"))

    def give_up(self, error: Exception) -> None:
        """Break the connection off: no more replies come."""
        self._fail(error)
        self.transport.abort()

    def _fail(self, error: Exception) -> None:
        while self._pending:
            self._pending.popleft().end(error)


class Puts:
    """Such a connection, opened when it is first needed, and anew when it was lost. Belongs to one event loop."""

    def __init__(self) -> None:
        self._replies: _Replies | None = None
        self._connection: Any = None  # redis-py's
        self._opening = asyncio.Lock()

    async def put(self, values: Iterable[tuple[str, Data]], seconds: int) -> None:
        """Set each value by its name, for so many seconds. Nobody may change the data until it returns.

        Raises `BufferUnavailable`: any of them may be missing then. Cancelling leaves the writing running.
        """
        with reporting():
            await self._put(values, seconds)

    async def _put(self, values: Iterable[tuple[str, Data]], seconds: int) -> None:
        replies = self._replies if self._replies is not None and self._replies.usable else await self._open()
        pieces = list(_commands(values, seconds))
        done = replies.expect(len(pieces) // PIECES)
        replies.transport.writelines(pieces)
        try:
            async with asyncio.timeout(SOCKET_TIMEOUT_SECONDS):
                await done
        except TimeoutError:
            replies.give_up(redis.TimeoutError("Redis does not answer"))
            raise

    async def _open(self) -> _Replies:
        async with self._opening:  # many ask at once; one connection serves them all
            if self._replies is not None and self._replies.usable:
                return self._replies
            await self.close()
            self._connection = aclient().connection_pool.make_connection()
            await self._connection.connect()
            transport = cast("asyncio.Transport", self._connection._writer.transport)
            self._replies = _Replies(transport)
            transport.set_protocol(self._replies)
            return self._replies

    async def close(self) -> None:
        """Close the connection; the next `put` opens another."""
        connection, self._connection, self._replies = self._connection, None, None
        if connection is not None:
            await connection.disconnect(nowait=True)


def _commands(values: Iterable[tuple[str, Data]], seconds: int) -> Iterator[Data]:
    """Yield a SET with its lifetime for each value, in `PIECES` pieces (the Redis serialization protocol)."""
    tail = b"\r\n$2\r\nEX\r\n$%d\r\n%d\r\n" % (len(str(seconds)), seconds)
    for name, data in values:
        key = name.encode()
        yield b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(key), key, len(data))
        yield data
        yield tail
