"""Stream put one behind the other: on a real server, and by replies in every cut."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator

import pytest
import redis

from delivery.buffer import pool, stream
from delivery.buffer.pool import aclient, client
from delivery.buffer.stream import Stream
from delivery.errors import BufferUnavailable

MIB = 1024 * 1024


@pytest.fixture
async def line(valkey: None) -> AsyncIterator[Stream]:
    """A connection to a Valkey."""
    line = Stream()
    yield line
    await line.close()
    await pool.aclose()


async def connections() -> int:
    return len(await aclient().client_list()) - 1


async def test_what_is_put_is_there_and_expires(line: Stream) -> None:
    large, view = os.urandom(MIB), memoryview(os.urandom(300_000))[12:]
    await line.put([("a", large), ("b", view), ("c", b"")], 60)
    assert (client().get("a"), client().get("b"), client().get("c")) == (large, bytes(view), b"")
    assert 0 < client().ttl("a") <= 60


async def test_many_at_once_share_one_connection(line: Stream) -> None:
    values = {f"k{number}": os.urandom(200_000) for number in range(30)}
    await asyncio.gather(*(line.put([(name, data)], 60) for name, data in values.items()))
    assert {name: client().get(name) for name in values} == values
    assert await connections() <= 2  # this one, and that of the fixture's client


async def test_a_server_that_is_full_is_reported_and_used_again(line: Stream) -> None:
    used = client().info("memory")["used_memory"]
    client().config_set("maxmemory", used + 2 * MIB)
    client().config_set("maxmemory-policy", "noeviction")
    with pytest.raises(BufferUnavailable, match="ResponseError"):
        await line.put([(f"k{number}", os.urandom(MIB)) for number in range(8)], 60)
    client().config_set("maxmemory", 0)
    await line.put([("k", b"x")], 60)
    assert client().get("k") == b"x"


async def test_a_connection_that_is_lost_is_opened_again(line: Stream) -> None:
    await line.put([("k", b"x")], 60)
    client().client_kill_filter(_type="normal", skipme=True)
    with contextlib.suppress(BufferUnavailable):  # where it was not noticed yet
        await line.put([("k", b"y")], 60)
    await line.put([("k", b"z")], 60)
    assert client().get("k") == b"z"


async def test_a_server_that_does_not_answer_is_given_up(line: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "SOCKET_TIMEOUT_SECONDS", 0.3)
    await line.put([("k", b"x")], 60)
    client().execute_command("CLIENT", "PAUSE", "1500", "WRITE")
    began = time.monotonic()
    with pytest.raises(BufferUnavailable, match="Timeout"):
        await line.put([("k", b"y")], 60)
    assert time.monotonic() - began < 1.4
    monkeypatch.undo()
    await line.put([("k", b"z")], 60)
    assert client().get("k") == b"z"


async def test_cancelling_leaves_the_others_their_replies(line: Stream) -> None:
    await line.put([("c", b"x")], 60)
    first = asyncio.ensure_future(line.put([("a", os.urandom(8 * MIB))], 60))
    second = asyncio.ensure_future(line.put([("b", b"b")], 60))
    await asyncio.sleep(0)
    first.cancel()
    await second
    await line.put([("c", b"c")], 60)
    assert (client().strlen("a"), client().get("b"), client().get("c")) == (8 * MIB, b"b", b"c")


async def test_an_idle_connection_is_not_trusted(line: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    await line.put([("k", b"x")], 60)
    monkeypatch.setattr(stream, "IDLE_SECONDS", 0.0)
    await line.put([("k", b"y")], 60)
    assert client().get("k") == b"y"
    assert await connections() <= 2


class Transport(asyncio.Transport):
    """Takes what it is given, for replies that a test makes up."""

    aborted = False

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted


def feed(replies: stream._Replies, data: bytes, step: int) -> None:
    """Give what a server wrote as a transport does, `step` bytes at most at a time."""
    while data:
        room = replies.get_buffer(-1)
        piece = data[: min(step, len(room))]
        room[: len(piece)] = piece
        replies.buffer_updated(len(piece))
        data = data[len(piece) :]


@pytest.mark.parametrize("step", [1, 3, 5, 100])
async def test_replies_are_counted_in_every_cut(step: int) -> None:
    replies = stream._Replies(Transport())
    first, second, third = replies.expect(2), replies.expect(3), replies.expect(1)
    feed(replies, b"+OK\r\n+OK\r\n" + b"+OK\r\n-OOM no room\r\n-ERR other\r\n" + b"+OK\r\n", step)
    await first
    await third
    with pytest.raises(redis.ResponseError, match="OOM no room"):
        await second
    assert replies.usable


@pytest.mark.parametrize("step", [1, 7, 33, 100_000, 10**7])
async def test_values_come_whole_in_every_cut(step: int) -> None:
    replies = stream._Replies(Transport())
    sent = [b"x" * 5_000, None, b"", b"\r\n$-1\r\n", None, os.urandom(300_000), b"a", os.urandom(20_000)]
    data = b"".join(b"$-1\r\n" if one is None else b"$%d\r\n%b\r\n" % (len(one), one) for one in sent)
    first, second = replies.expect(len(sent), values=True), replies.expect(1)
    refused, third = replies.expect(2, values=True), replies.expect(2, values=True)
    feed(replies, b"*%d\r\n%b+OK\r\n-LOADING the dataset\r\n*2\r\n_\r\n$1\r\nz\r\n" % (len(sent), data), step)
    assert [None if one is None else bytes(one) for one in await first] == sent
    await second
    with pytest.raises(redis.ResponseError, match="LOADING"):
        await refused
    assert await third == [None, b"z"]


async def test_what_was_put_is_got(line: Stream) -> None:
    large = os.urandom(3 * MIB)
    await line.put([("a", large), ("b", b"")], 60)
    for _ in range(2):
        a, b, none = await line.get(["a", "b", "none"])
        assert a is not None
        assert (bytes(a), b, none) == (large, b"", None)
    many = await asyncio.gather(*(line.get(["a"] * 3) for _ in range(5)))
    assert all(bytes(one or b"") == large for got in many for one in got)


@pytest.mark.parametrize("data", [b":1\r\n", b"+" * 2_000, b"+OK\r\n+OK\r\n", b"*1\r\n"])
async def test_other_replies_end_the_connection(data: bytes) -> None:
    replies = stream._Replies(Transport())
    done = replies.expect(1 if data.startswith(b"+OK") else 3)
    feed(replies, data, 10**6)
    if not data.startswith(b"+OK"):
        with pytest.raises(redis.InvalidResponse):
            await done
    assert not replies.usable
