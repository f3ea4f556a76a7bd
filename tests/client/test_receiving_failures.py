"""Receiving where the program's own code fails: that one delivery fails with what was raised, and nothing else ends."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from delivery.client import Client, Incoming, LargeMessages, Progress, connect
from delivery.client.receiving_directory import FOLDER
from delivery.client.sinks import MemorySink
from delivery.errors import ConnectionStopped, IntegrityError, TransferAborted, UsageError
from tests.client.conftest import eventually
from tests.client.server import CoreServer

DATA = os.urandom(3 * 1_048_576 + 12_345)


async def first(client: Client) -> Incoming:
    async for incoming in client.deliveries():
        return incoming
    raise AssertionError("nothing came")


class Broken(Exception):
    pass


@pytest.mark.parametrize("error", [Broken(), IntegrityError("mine"), StopIteration(), asyncio.CancelledError()])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
async def test_a_progress_callback_that_raises_fails_this_save_alone(
    server: CoreServer, tmp_path: Path, error: BaseException, share: float
) -> None:
    waiting, other = server.offer(DATA), server.offer(b"other", "other.txt")
    errors: list[BaseException] = []

    def raising(progress: Progress) -> None:
        if progress.stored >= share * len(DATA):
            errors.append(error)
            raise error

    async with connect(server.url, receive=True, window=262_144, client_id="me") as client:
        incoming = await first(client)
        with pytest.raises((type(error), RuntimeError)) as caught:
            async with asyncio.timeout(10):
                await incoming.save(tmp_path, progress=raising)
        assert error in (caught.value, caught.value.__cause__)
        assert len(errors) == 1
        assert not waiting.done
        assert (await (await first(client)).save(tmp_path)).read_bytes() == b"other"  # on the same connection
        assert client.statistics.connections == 1
        server.cut()  # what was set aside is offered again on the next one
        assert (await (await first(client)).save(tmp_path)).read_bytes() == DATA
        await eventually(lambda: waiting.done and other.done)
        assert client.statistics.received_again_bytes <= 262_144
    assert sorted(os.listdir(tmp_path)) == [FOLDER, "other.txt", "scan.tif"]


async def test_a_sink_that_raises_fails_this_delivery_alone(
    server: CoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def raising(self: MemorySink, blocks: Any) -> None:
        raise Broken

    monkeypatch.setattr(MemorySink, "write", raising)
    waiting = server.offer(DATA)
    async with connect(server.url, receive=True, window=262_144) as client:
        incoming = await first(client)
        with pytest.raises(Broken):
            async with asyncio.timeout(10):
                await incoming.read()
        monkeypatch.undo()
        await client.send(b"still connected")
        assert not waiting.done
        server.cut()
        assert await (await first(client)).read() == DATA


async def test_a_client_that_is_closed_lets_go_of_what_is_being_saved(server: CoreServer, tmp_path: Path) -> None:
    server.offer(DATA)
    server.send_until = 1_048_576
    async with connect(server.url, receive=True) as client:
        saving = asyncio.ensure_future((await first(client)).save(tmp_path))
        await eventually(lambda: client.statistics.received_bytes == 1_048_576)
    with pytest.raises(ConnectionStopped):
        await saving
    server.send_until = None
    async with connect(server.url, receive=True) as client:  # in the same process: the part is free again
        assert (await (await first(client)).save(tmp_path)).read_bytes() == DATA
        assert client.statistics.received_bytes == len(DATA) - 1_048_576


async def test_a_save_that_was_given_up_can_be_taken_up_again(server: CoreServer, tmp_path: Path) -> None:
    server.offer(DATA)
    server.send_until = 1_048_576
    async with connect(server.url, receive=True, window=262_144) as client:
        incoming = await first(client)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await incoming.save(tmp_path)
        server.send_until = None
        saving = asyncio.ensure_future(incoming.save(tmp_path))
        await asyncio.sleep(0)
        server.cut()
        async with asyncio.timeout(10):
            assert (await saving).read_bytes() == DATA


async def test_a_handle_that_was_given_up_says_that_there_is_a_newer_one(server: CoreServer, tmp_path: Path) -> None:
    server.offer(DATA)
    server.send_until = 1_048_576
    async with connect(server.url, receive=True, window=262_144) as client:
        incoming = await first(client)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await incoming.save(tmp_path)
        server.send_until = None
        server.cut()
        again = await first(client)
        with pytest.raises(UsageError, match="offered again"):
            await incoming.save(tmp_path)
        assert (await again.save(tmp_path)).read_bytes() == DATA


async def test_done_waits_until_the_reader_took_the_last_block(server: CoreServer) -> None:
    waiting = server.offer(DATA)
    async with connect(server.url, receive=True) as client:
        taken = 0
        async for block in await first(client):
            taken += len(block)
            if taken == len(DATA):
                server.cut()  # all of it is here: the next connection has only the end to say
                await eventually(lambda: client.statistics.connections == 2)
                await client.send(b"a round trip later")
                assert not waiting.done
        await eventually(lambda: waiting.done)


async def test_a_reader_that_fails_at_the_last_block_has_not_received_it(server: CoreServer) -> None:
    waiting = server.offer(b"all of it")
    async with connect(server.url, receive=True) as client:
        blocks = aiter(await first(client))
        assert await anext(blocks) == b"all of it"
        await blocks.aclose()
        await client.send(b"a round trip later")
        assert not waiting.done


async def test_memory_is_bounded_where_the_size_is_not_known() -> None:
    sink = MemorySink(limit=1_000)
    await sink.write([memoryview(bytes(1_000))])
    with pytest.raises(UsageError, match="use save"):
        await sink.write([memoryview(b"x")])
    assert len(sink.data) == 1_000


async def test_what_ends_a_save_is_not_hidden_by_letting_go_of_the_file(server: CoreServer, tmp_path: Path) -> None:
    server.offer(DATA)
    server.send_until = 1_048_576
    async with connect(server.url, receive=True, window=262_144) as client:
        saving = asyncio.ensure_future((await first(client)).save(tmp_path))
        await eventually(lambda: client.statistics.received_bytes == 1_048_576)
        (part,) = (tmp_path / FOLDER).glob("*.part")
        part.unlink()
        saving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saving


async def test_an_observer_that_raises_ends_its_client_and_whoever_waits_for_it(server: CoreServer) -> None:
    def raising(event: str, details: dict[str, Any]) -> None:
        if event == "closed":
            raise Broken

    client = connect(server.url, receive=True, observer=raising)
    async with client, LargeMessages(client) as messages:
        waiting = asyncio.ensure_future(messages.unpack(json.dumps({"type": "delivery.large", "payload": "p"})))
        await asyncio.sleep(0)
        server.cut()
        with pytest.raises(Broken):
            async with asyncio.timeout(10):
                await waiting


# -- the end of a transfer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["expired", "cancelled", "forbidden"])
async def test_a_transfer_that_ended_for_good_leaves_no_part(server: CoreServer, tmp_path: Path, code: str) -> None:
    server.offer(DATA)
    server.send_until = 1_048_576
    async with connect(server.url, receive=True, window=262_144) as client:
        saving = asyncio.ensure_future((await first(client)).save(tmp_path))
        await eventually(lambda: client.statistics.received_bytes == 1_048_576)
        (session,) = server.sessions
        (sender,) = session.core.senders.values()
        session.core.abort(sender, code, final=True)
        session.wake.set()
        with pytest.raises(TransferAborted, match=code):
            await saving
    assert list((tmp_path / FOLDER).iterdir()) == []


async def test_a_transfer_that_moves_to_another_connection_keeps_its_part(server: CoreServer, tmp_path: Path) -> None:
    server.offer(DATA)
    server.send_until = 1_048_576
    async with connect(server.url, receive=True, window=262_144) as client:
        saving = asyncio.ensure_future((await first(client)).save(tmp_path))
        await eventually(lambda: client.statistics.received_bytes == 1_048_576)
        (session,) = server.sessions
        (sender,) = session.core.senders.values()
        session.core.abort(sender, "taken_over", final=False)
        session.wake.set()
        with pytest.raises(TransferAborted, match="taken_over"):
            await saving
    assert len(list((tmp_path / FOLDER).glob("*.part"))) == 1
