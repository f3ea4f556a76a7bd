"""Many large values of Redis, read as they come: straight from the socket to whoever wants them.

redis-py's reply path reads into a buffer, copies into the parser's, and again into each value; bulk data is what this
project moves, so here it is copied once, by the kernel. Connections, commands, timeouts and logins remain redis-py's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import redis

from delivery.buffer.clients import client, reporting

FIRST_READ_BYTES = 16  # of a reply: room for its head, and little of the first value
LONGEST_LINE_BYTES = 512  # an error's text; the head of a value has a few bytes


class Values:
    """The values of one MGET, in the order of their keys; each has to be asked for by `length` and read to its end.

    Belongs to one thread. Failures come out as redis-py's and the socket's own: use it inside `reporting`.
    """

    def __init__(self, connection: Any) -> None:
        self._socket = connection._get_socket()
        self._carry = b""  # read already, wanted still
        self._left = 0  # of the current value, in bytes
        self._head = FIRST_READ_BYTES
        self._begun = False

    def expect(self, count: int) -> None:
        """Take the head of the reply: it holds `count` values. Raises `redis.RedisError`."""
        line = self._line()
        if line != b"*%d" % count:
            raise redis.ResponseError(f"expected {count} values: {line[:80]!r}" if line[:1] == b"-" else "no array")

    def length(self) -> int | None:
        """Begin the next value; return its length in bytes, None where there is no such key."""
        if self._left:
            raise redis.InvalidResponse("a value was not read to its end")
        self._end_value()
        line = self._line()
        self._head = len(line) + 4
        if line in (b"$-1", b"_"):
            return None
        if line[:1] != b"$":
            raise redis.InvalidResponse("no value")
        self._left = int(line[1:])
        self._begun = True
        return self._left

    def whole(self) -> bytearray | None:
        """Return the next value, all of it, None where there is no such key."""
        length = self.length()
        if length is None:
            return None
        value = bytearray(length)
        self.read_into(memoryview(value))
        return value

    def read(self, most: int) -> bytes:
        """Return the next bytes of the value, at most `most`; b"" at its end."""
        wanted = min(most, self._left)
        if not wanted:
            return b""
        piece, self._carry = self._carry[:wanted], self._carry[wanted:]
        if len(piece) < wanted:
            piece += self._receive(wanted - len(piece))
        self._left -= len(piece)
        return piece

    def read_into(self, view: memoryview) -> None:
        """Fill `view` with the next bytes of the value, which has at least as many."""
        at = min(len(self._carry), len(view))
        view[:at], self._carry = self._carry[:at], self._carry[at:]
        while at < len(view):
            got = self._socket.recv_into(view[at:])
            if not got:
                raise redis.ConnectionError("Redis closed the connection")
            at += got
        self._left -= at

    def finish(self) -> None:
        """Take what ends the reply. Raises `redis.RedisError` where there is more: the connection is of no more use."""
        self._end_value()
        if self._carry or self._left:
            raise redis.InvalidResponse("more than was asked for")

    def _end_value(self) -> None:
        """Take the line end behind a value, and with it as much as the next head most likely has."""
        if self._begun:
            self._begun = False
            while len(self._carry) < 2:
                self._carry += self._receive(self._head - len(self._carry))
            self._carry = self._carry[2:]

    def _line(self) -> bytes:
        while (end := self._carry.find(b"\r\n")) < 0:
            if len(self._carry) > LONGEST_LINE_BYTES:
                raise redis.InvalidResponse("a line without end")
            self._carry += self._receive(max(1, self._head - len(self._carry)))
        line, self._carry = self._carry[:end], self._carry[end + 2 :]
        return line

    def _receive(self, most: int) -> bytes:
        piece: bytes = self._socket.recv(most)
        if not piece:
            raise redis.ConnectionError("Redis closed the connection")
        return piece


@contextlib.contextmanager
def mget(names: Sequence[str]) -> Iterator[Values]:
    """Ask for the values of `names`; the connection is kept only where all of them were read.

    Blocks: for threads and workers. Raises `BufferUnavailable`.
    """
    with reporting():
        pool = client().connection_pool
        connection = pool.get_connection()
        whole = False
        try:
            connection.send_command("MGET", *names)
            values = Values(connection)
            values.expect(len(names))
            yield values
            values.finish()
            whole = True
        finally:
            if not whole:
                connection.disconnect()
            pool.release(connection)
