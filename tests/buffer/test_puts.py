"""Values put one behind the other: on a real server, and by replies in every cut."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator

import pytest
import redis

from delivery.buffer import clients, puts
from delivery.buffer.clients import aclient, client
from delivery.buffer.puts import Puts
from delivery.errors import BufferUnavailable

MIB = 1024 * 1024


@pytest.fixture
async def putting(valkey: None) -> AsyncIterator[Puts]:
    """A connection to a Valkey."""
    puts = Puts()
    yield puts
    await puts.close()
    await clients.aclose()


async def connections() -> int:
    return len(await aclient().client_list()) - 1


async def test_what_is_put_is_there_and_expires(putting: Puts) -> None:
    large, view = os.urandom(MIB), memoryview(os.urandom(300_000))[12:]
    await putting.put([("a", large), ("b", view), ("c", b"")], 60)
    assert (client().get("a"), client().get("b"), client().get("c")) == (large, bytes(view), b"")
    assert 0 < client().ttl("a") <= 60


async def test_many_at_once_share_one_connection(putting: Puts) -> None:
    values = {f"k{number}": os.urandom(200_000) for number in range(30)}
    await asyncio.gather(*(putting.put([(name, data)], 60) for name, data in values.items()))
    assert {name: client().get(name) for name in values} == values
    assert await connections() <= 2  # this one, and that of the fixture's client


async def test_a_server_that_is_full_is_reported_and_used_again(putting: Puts) -> None:
    used = client().info("memory")["used_memory"]
    client().config_set("maxmemory", used + 2 * MIB)
    client().config_set("maxmemory-policy", "noeviction")
    with pytest.raises(BufferUnavailable, match="ResponseError"):
        await putting.put([(f"k{number}", os.urandom(MIB)) for number in range(8)], 60)
    client().config_set("maxmemory", 0)
    await putting.put([("k", b"x")], 60)
    assert client().get("k") == b"x"


async def test_a_connection_that_is_lost_is_opened_again(putting: Puts) -> None:
    await putting.put([("k", b"x")], 60)
    client().client_kill_filter(_type="normal", skipme=True)
    with contextlib.suppress(BufferUnavailable):  # where it was not noticed yet
        await putting.put([("k", b"y")], 60)
    await putting.put([("k", b"z")], 60)
    assert client().get("k") == b"z"


async def test_a_server_that_does_not_answer_is_given_up(putting: Puts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(puts, "SOCKET_TIMEOUT_SECONDS", 0.3)
    await putting.put([("k", b"x")], 60)
    client().execute_command("CLIENT", "PAUSE", "1500", "WRITE")
    began = time.monotonic()
    with pytest.raises(BufferUnavailable, match="Timeout"):
        await putting.put([("k", b"y")], 60)
    assert time.monotonic() - began < 1.4
    monkeypatch.undo()
    await putting.put([("k", b"z")], 60)
    assert client().get("k") == b"z"


async def test_cancelling_leaves_the_others_their_replies(putting: Puts) -> None:
    await putting.put([("c", b"x")], 60)
    first = asyncio.ensure_future(putting.put([("a", os.urandom(8 * MIB))], 60))
    second = asyncio.ensure_future(putting.put([("b", b"b")], 60))
    await asyncio.sleep(0)
    first.cancel()
    await second
    await putting.put([("c", b"c")], 60)
    assert (client().strlen("a"), client().get("b"), client().get("c")) == (8 * MIB, b"b", b"c")


async def test_an_idle_connection_is_not_trusted(putting: Puts, monkeypatch: pytest.MonkeyPatch) -> None:
    await putting.put([("k", b"x")], 60)
    monkeypatch.setattr(puts, "IDLE_SECONDS", 0.0)
    await putting.put([("k", b"y")], 60)
    assert client().get("k") == b"y"
    assert await connections() <= 2


class Transport(asyncio.Transport):
    """Takes what it is given, for replies that a test makes up."""

    aborted = False

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted


@pytest.mark.parametrize("step", [1, 3, 5, 100])
async def test_replies_are_counted_in_every_cut(step: int) -> None:
    replies = puts._Replies(Transport())
    first, second, third = replies.expect(2), replies.expect(3), replies.expect(1)
    data = b"+OK\r\n+OK\r\n" + b"+OK\r\n-OOM no room\r\n-ERR other\r\n" + b"+OK\r\n"
    for at in range(0, len(data), step):
        replies.data_received(data[at : at + step])
    assert (await first, await third) == (None, None)
    with pytest.raises(redis.ResponseError, match="OOM no room"):
        await second
    assert replies.usable


@pytest.mark.parametrize("data", [b"$3\r\nabc\r\n", b"+" * 2_000, b"+OK\r\n+OK\r\n"])
async def test_other_replies_end_the_connection(data: bytes) -> None:
    replies = puts._Replies(Transport())
    done = replies.expect(1)
    replies.data_received(data)
    if not data.startswith(b"+OK"):
        with pytest.raises(redis.InvalidResponse):
            await done
    assert not replies.usable
