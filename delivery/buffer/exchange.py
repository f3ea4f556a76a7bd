"""Commands to Redis and their replies, in a thread, past redis-py's parser and packer.

What it buys: redis-py copies each reply three times and each value that is sent once more. Here the kernel alone copies
bulk data, straight between the socket and its owner; and many commands go out together, for the cost of one. Without
this module the same commands work through redis-py's client, for more processor time. Connections, packing of small
commands, timeouts and logins remain redis-py's.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import redis

from delivery.buffer.pool import client, give_room, reporting

READ_AHEAD_BYTES = 4096  # of replies; the rest of a larger value is read directly into the caller's buffer
LINE_BYTES = 512  # at most: an error's text; the head of a value has a few bytes

Command = Sequence[str | bytes | int]


class Exchange:
    """Commands on one connection, and their replies in the same order.

    Belongs to one thread. Failures come out as redis-py's and the socket's own: use it inside `reporting`.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._socket = connection._sock  # not `_get_socket`, which came with redis-py 7
        give_room(self._socket)
        self._replies = self._socket.makefile("rb", READ_AHEAD_BYTES)
        self._owed = 0  # replies that have not begun
        self._left = 0  # of the current value, in bytes

    def send(self, *commands: Command) -> None:
        """Send commands, all at once."""
        _send_all(self._socket, self._connection.pack_commands(commands))
        self._owed += len(commands)

    def send_value(self, name: str, length: int, parts: Iterable[bytes | memoryview], seconds: int) -> None:
        """Send the command that sets the key `name` for `seconds`.

        Its value, `length` bytes in all, is sent without a copy: each part before the next is requested.
        """
        head, tail = setting(name, length, seconds)
        self._owed += 1
        before, left = [head], length
        for part in parts:
            left -= len(part)
            if left < 0:
                break
            _send_all(self._socket, [*before, part])
            before = []
        if left:
            raise ValueError(f"a value of other than the {length} bytes that were announced")
        _send_all(self._socket, [*before, tail])

    def reply(self) -> Any:
        """Return the next reply: a number, bytes, a list of them, or None where there is no such key.

        Raises `redis.ResponseError`.
        """
        line = self._line()
        self._owed -= 1
        if line[:1] == b":":
            return int(line[1:])
        if line[:1] == b"+":
            return line[1:]
        if line[:1] == b"*" and line != b"*-1":
            count = int(line[1:])
            self._owed += count
            return [self.reply() for _ in range(count)]
        length = self._begin(line)
        return None if length is None else self.read(length)

    def expect(self, count: int) -> None:
        """Take the head of a reply that holds `count` values. Raises `redis.RedisError`."""
        line = self._line()
        if line != b"*%d" % count:
            raise refusal(line) if line[:1] == b"-" else redis.ResponseError(f"no array of {count} values")
        self._owed += count - 1

    def length(self) -> int | None:
        """Begin the next value; return its length in bytes, None where there is no such key. Read it to its end."""
        self._owed -= 1
        return self._begin(self._line())

    def _begin(self, line: bytes) -> int | None:
        if line in (b"$-1", b"*-1", b"_"):
            return None
        if line[:1] != b"$":
            raise refusal(line) if line[:1] == b"-" else redis.InvalidResponse("no value")
        self._left = int(line[1:])
        if not self._left:
            self._end()
        return self._left

    def read(self, most: int) -> bytes:
        """Return the next `most` bytes of the value, or what is left of it; b"" at its end."""
        wanted = min(most, self._left)
        if not wanted:
            return b""
        piece: bytes = self._replies.read(wanted)
        self._took(len(piece), wanted)
        return piece

    def _took(self, count: int, wanted: int) -> None:
        if count < wanted:
            raise redis.ConnectionError("Redis closed the connection")
        self._left -= count
        if not self._left:
            self._end()

    def _end(self) -> None:
        if self._replies.read(2) != b"\r\n":
            raise redis.InvalidResponse("no end of a value")

    def _line(self) -> bytes:
        if self._left:
            raise redis.InvalidResponse("a value was not read to its end")
        line: bytes = self._replies.readline(LINE_BYTES)
        if line[-2:] != b"\r\n":
            raise redis.InvalidResponse("a line without end") if line else redis.ConnectionError("Redis closed it")
        return line[:-2]

    def finish(self) -> None:
        """Raise `redis.RedisError` if replies are left: the connection is unusable then."""
        if self._owed or self._left:
            raise redis.InvalidResponse("replies were not read")

    def close(self) -> None:
        """Let go of the connection, which stays open."""
        self._replies.close()


def setting(name: str, length: int, seconds: int) -> tuple[bytes, bytes]:
    """Return what stands before and behind a value of `length` bytes in the command that sets `name` for `seconds`."""
    key, life = name.encode(), b"%d" % seconds
    head = b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(key), key, length)
    return head, b"\r\n$2\r\nEX\r\n$%d\r\n%b\r\n" % (len(life), life)


def _send_all(target: socket.socket, buffers: list[bytes | memoryview]) -> None:
    """Send buffers without joining them; TLS takes one at a time."""
    if isinstance(target, ssl.SSLSocket):
        for buffer in buffers:
            target.sendall(buffer)
        return
    left = buffers
    while left:
        left = _behind(left, target.sendmsg(left))


def _behind(buffers: list[bytes | memoryview], sent: int) -> list[bytes | memoryview]:
    """Return what of these buffers is left after their first `sent` bytes."""
    for number, buffer in enumerate(buffers):
        if sent < len(buffer):
            return [memoryview(buffer)[sent:], *buffers[number + 1 :]]
        sent -= len(buffer)
    return []


def refusal(line: bytes) -> redis.ResponseError:
    """Return the error that a reply's line names."""
    return redis.ResponseError(line[1:80].decode(errors="replace"))


@contextlib.contextmanager
def connection() -> Iterator[Exchange]:
    """Use one connection to Redis, which is kept only if every reply was read.

    Blocks: for threads and workers. There are no retries. Raises `BufferUnavailable`.
    """
    with reporting():
        pool = client().connection_pool
        taken = pool.get_connection()
        whole = False
        try:
            taken.check_health()
            with contextlib.closing(Exchange(taken)) as line:
                yield line
                line.finish()
            whole = True
        finally:
            if not whole:
                taken.disconnect()
            pool.release(taken)


def run_commands(*commands: Command) -> list[Any]:
    """Run small commands in one round trip; return their replies. Raises `BufferUnavailable`, also where one fails."""
    with connection() as line:
        line.send(*commands)
        return [line.reply() for _ in commands]
