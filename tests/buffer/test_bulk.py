"""Bulk replies, read as they come: from a real server, and in every cut that a socket can make of them."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
import redis

from delivery.buffer import bulk
from delivery.errors import BufferUnavailable


class _Line:
    """A connection of redis-py's, as far as `Values` needs one, whose other end gives `reply` in pieces."""

    def __init__(self, reply: bytes, step: int) -> None:
        self._ours, theirs = socket.socketpair()
        threading.Thread(target=self._give, args=(theirs, reply, step), daemon=True).start()

    def _give(self, theirs: socket.socket, reply: bytes, step: int) -> None:
        with theirs, contextlib.suppress(BrokenPipeError):
            for at in range(0, len(reply), step):
                theirs.sendall(reply[at : at + step])

    def _get_socket(self) -> socket.socket:
        return self._ours

    def close(self) -> None:
        self._ours.close()


Given = Callable[[bytes, int], bulk.Values]


@pytest.fixture
def given() -> Iterator[Given]:
    """Return what makes values of a reply that comes in pieces of `step` bytes."""
    with contextlib.ExitStack() as stack:
        yield lambda reply, step: bulk.Values(stack.enter_context(contextlib.closing(_Line(reply, step))))


def _reply(*values: bytes | None) -> bytes:
    written = [b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value) for value in values]
    return b"*%d\r\n%b" % (len(values), b"".join(written))


def _read_all(values: bulk.Values, count: int) -> Iterator[bytes | None]:
    values.expect(count)
    for _ in range(count):
        if values.length() is None:
            yield None
        else:
            yield b"".join(iter(lambda: values.read(1000), b""))
    values.finish()


SAMPLES = (b"x" * 5000, None, b"", b"\r\n$-1\r\n", None, os.urandom(3000), b"a", b"b" * 12)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 16, 4096, 100_000])
def test_values_come_whole_in_every_cut(given: Given, step: int) -> None:
    values = given(_reply(*SAMPLES), step)
    assert list(_read_all(values, len(SAMPLES))) == list(SAMPLES)


@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_a_whole_value_comes_in_one_piece(given: Given, step: int) -> None:
    data = os.urandom(3000)
    values = given(_reply(data, None), step)
    values.expect(2)
    assert (values.whole(), values.whole()) == (data, None)
    values.finish()


def test_nothing_else_is_taken_for_values(given: Given) -> None:
    with pytest.raises(redis.ResponseError, match="LOADING"):
        given(b"-LOADING the dataset\r\n", 100).expect(1)
    with pytest.raises(redis.InvalidResponse, match="a line without end"):
        given(b"*" * 2000, 100).expect(1)


def test_a_reply_that_breaks_off_is_an_error(given: Given) -> None:
    values = given(_reply(b"x" * 5000)[:2000], 500)
    with pytest.raises(redis.ConnectionError):
        list(_read_all(values, 1))


def test_a_real_server_gives_what_was_put(valkey: None) -> None:
    data = os.urandom(1_000_000)
    client = bulk.client()
    client.set("delivery:bulk", data, ex=60)
    for _ in range(2):  # the second time on the same connection
        with bulk.mget(["delivery:bulk", "delivery:none"]) as values:
            assert values.length() == len(data)
            assert b"".join(iter(lambda: values.read(65_536), b"")) == data
            assert values.length() is None
    assert client.get("delivery:bulk") == data


def test_a_connection_that_was_not_read_to_its_end_is_not_used_again(valkey: None) -> None:
    bulk.client().set("delivery:bulk", b"x" * 100_000, ex=60)
    with pytest.raises(BufferUnavailable), bulk.mget(["delivery:bulk"]):
        pass
    assert bulk.client().get("delivery:bulk") == b"x" * 100_000
