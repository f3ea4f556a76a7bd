from __future__ import annotations

import asyncio
import hashlib
import json
import os
from pathlib import Path

import pytest

from delivery.client import Client, Incoming, connect
from delivery.client.receiving_directory import FOLDER
from delivery.errors import ConnectionStopped, IntegrityError, StorageUnavailable, TransferAborted, UsageError
from delivery.protocol import frames
from tests.client.conftest import eventually
from tests.client.proxy import Proxy
from tests.client.server import CoreServer

DATA = os.urandom(8 * 1_048_576 + 12_345)


async def first(client: Client) -> Incoming:
    async for incoming in client.deliveries():
        return incoming
    raise AssertionError("nothing came")


def visible(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != FOLDER)


async def test_a_delivery_is_saved_under_its_name(server: CoreServer, tmp_path: Path) -> None:
    waiting = server.offer(DATA, meta={"case": "7"}, content_type="image/tiff")
    async with connect(server.url, receive=True) as client:
        incoming = await first(client)
        assert (incoming.name, incoming.size, incoming.content_type) == ("scan.tif", len(DATA), "image/tiff")
        assert (incoming.sender, incoming.meta, incoming.expires) == ("user:1", {"case": "7"}, None)
        path = await incoming.save(tmp_path / "in")
        assert path == tmp_path / "in" / "scan.tif"
        assert path.read_bytes() == DATA
        assert incoming.sha256 == hashlib.sha256(DATA).hexdigest()
        await eventually(lambda: waiting.done)
    assert visible(tmp_path / "in") == ["scan.tif"]


async def test_an_empty_payload_is_saved(server: CoreServer, tmp_path: Path) -> None:
    waiting = server.offer(b"")
    async with connect(server.url, receive=True) as client:
        path = await (await first(client)).save(tmp_path)
        await eventually(lambda: waiting.done)
    assert path.read_bytes() == b""


async def test_taken_names_are_numbered(server: CoreServer, tmp_path: Path) -> None:
    (tmp_path / "scan.tif").write_bytes(b"mine")
    server.offer(b"one")
    server.offer(b"two")
    async with connect(server.url, receive=True) as client:
        paths = [await (await first(client)).save(tmp_path) for _ in range(2)]
    assert [path.name for path in paths] == ["scan (1).tif", "scan (2).tif"]
    assert (tmp_path / "scan.tif").read_bytes() == b"mine"


async def test_it_is_read_into_memory_or_block_by_block(server: CoreServer) -> None:
    server.offer(b"small")
    server.offer(DATA)
    async with connect(server.url, receive=True) as client:
        assert await (await first(client)).read() == b"small"
        blocks = [block async for block in await first(client)]
        assert b"".join(blocks) == DATA
        assert len(blocks) > 1


async def test_read_refuses_what_does_not_fit(server: CoreServer) -> None:
    server.offer(DATA)
    async with connect(server.url, receive=True) as client:
        with pytest.raises(UsageError, match="use save"):
            await (await first(client)).read(limit=1000)


async def test_a_slow_reader_gives_no_credit(server: CoreServer) -> None:
    window = 1_048_576
    server.offer(DATA)
    async with connect(server.url, receive=True, window=window) as client:
        taken = 0
        async for block in await first(client):
            taken += len(block)
            assert client.statistics.received_bytes <= taken + 2 * window + 262_144
            await asyncio.sleep(0)
        assert taken == len(DATA)


async def test_a_stream_goes_on_after_cuts(server: CoreServer, proxy: Proxy) -> None:
    server.offer(DATA)
    proxy.cut_down_after = lambda number: 3_000_000 if number <= 2 else None
    async with connect(proxy.url, receive=True) as client:
        assert await (await first(client)).read() == DATA
        assert client.statistics.closes == {1006: 2}


async def test_saving_goes_on_after_cuts(server: CoreServer, proxy: Proxy, tmp_path: Path) -> None:
    waiting = server.offer(DATA)
    proxy.cut_down_after = lambda number: 3_000_000 if number <= 2 else None
    async with connect(proxy.url, receive=True, window=1_048_576) as client:
        path = await (await first(client)).save(tmp_path)
        assert client.statistics.closes == {1006: 2}
        assert client.statistics.resumes == 2
        assert client.statistics.received_again_bytes <= 2 * 1_048_576
        await eventually(lambda: waiting.done)
    assert path.read_bytes() == DATA


async def test_a_proxy_that_cuts_large_messages_down_is_survived(
    server: CoreServer, proxy: Proxy, tmp_path: Path
) -> None:
    server.offer(DATA)
    async with connect(proxy.url, receive=True) as client:
        proxy.cut_down_after = lambda number: 20_000 if number <= 6 else None  # less than one chunk
        proxy.cut()
        path = await (await first(client)).save(tmp_path)
    assert path.read_bytes() == DATA
    assert server.hellos[-1].chunk_size < server.hellos[0].chunk_size


async def test_a_cancelled_save_keeps_what_came_and_a_new_client_goes_on(server: CoreServer, tmp_path: Path) -> None:
    server.offer(DATA)
    async with connect(server.url, receive=True, window=262_144) as client:
        saving = asyncio.ensure_future((await first(client)).save(tmp_path))
        await eventually(lambda: client.statistics.received_bytes > 2_000_000)
        saving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saving
    assert visible(tmp_path) == []
    (part,) = (tmp_path / FOLDER).glob("*.part")
    kept = part.stat().st_size
    assert kept > 1_000_000
    async with connect(server.url, receive=True) as client:
        path = await (await first(client)).save(tmp_path)
        assert client.statistics.received_bytes == len(DATA) - kept
    assert path.read_bytes() == DATA


async def test_no_more_is_trusted_than_is_there(server: CoreServer, tmp_path: Path) -> None:
    """The note may say more than the disk has, after a power cut for instance."""
    waiting = server.offer(DATA)
    folder = tmp_path / FOLDER
    folder.mkdir()
    transfer = waiting.offer.transfer
    (folder / f"{transfer}.part").write_bytes(DATA[:1_500_000])
    note = {"transfer": transfer, "size": len(DATA), "position": 4_194_304}
    (folder / f"{transfer}.json").write_text(json.dumps(note))
    async with connect(server.url, receive=True) as client:
        path = await (await first(client)).save(tmp_path)
        assert client.statistics.received_bytes == len(DATA) - 1_500_000 // 4096 * 4096
    assert path.read_bytes() == DATA


async def test_damage_in_the_part_is_found(server: CoreServer, tmp_path: Path) -> None:
    waiting = server.offer(DATA)
    folder = tmp_path / FOLDER
    folder.mkdir()
    transfer = waiting.offer.transfer
    (folder / f"{transfer}.part").write_bytes(b"\0" * 1_048_576)
    note = {"transfer": transfer, "size": len(DATA), "position": 1_048_576}
    (folder / f"{transfer}.json").write_text(json.dumps(note))
    async with connect(server.url, receive=True) as client:
        with pytest.raises(IntegrityError):
            await (await first(client)).save(tmp_path)
        await eventually(lambda: waiting.aborted)
    assert waiting.aborted[0][1] == "digest"
    assert visible(tmp_path) == []
    assert not list(folder.glob("*.part"))


async def test_a_lost_done_is_answered_again_and_nothing_saved_twice(server: CoreServer, tmp_path: Path) -> None:
    waiting = server.offer(b"once")
    async with connect(server.url, receive=True, client_id="me") as client:
        path = await (await first(client)).save(tmp_path)
        await eventually(lambda: waiting.done)
        waiting.done.clear()  # as if it had been lost
        server.cut()
        await eventually(lambda: waiting.done)
        waiting.done.clear()
    async with connect(server.url, receive=True, client_id="me") as client:  # a later process
        assert await (await first(client)).save(tmp_path) == path
        await eventually(lambda: waiting.done)
        assert client.statistics.received_bytes <= 4
    assert visible(tmp_path) == ["scan.tif"]


@pytest.mark.parametrize("linked", [False, True])
async def test_a_crash_between_digest_and_rename_is_repaired(
    server: CoreServer, tmp_path: Path, *, linked: bool
) -> None:
    waiting = server.offer(b"whole")
    folder, transfer = tmp_path / FOLDER, waiting.offer.transfer
    folder.mkdir()
    part, target = folder / f"{transfer}.part", tmp_path / "scan.tif"
    part.write_bytes(b"whole")
    if linked:
        os.link(part, target)
    digest = hashlib.sha256(b"whole").hexdigest()
    note = {"transfer": transfer, "size": 5, "position": 5, "state": "complete", "sha256": digest, "path": str(target)}
    (folder / f"{transfer}.json").write_text(json.dumps(note))
    async with connect(server.url, receive=True) as client:
        assert await (await first(client)).save(tmp_path) == target
        await eventually(lambda: waiting.done)
    assert visible(tmp_path) == ["scan.tif"]
    assert not part.exists()


async def test_hold_gives_no_credit_until_release(server: CoreServer, tmp_path: Path) -> None:
    server.offer(DATA)
    async with connect(server.url, receive=True) as client:
        incoming = await first(client)
        incoming.hold()
        saving = asyncio.ensure_future(incoming.save(tmp_path))
        await eventually(lambda: incoming.receiving is not None and incoming.receiving.accepted)
        await client.send(b"a round trip later")
        assert client.statistics.received_bytes == 0
        incoming.release()
        assert (await saving).read_bytes() == DATA


async def test_what_is_declined_is_not_offered_again(server: CoreServer) -> None:
    waiting = server.offer(DATA)
    async with connect(server.url, receive=True, client_id="me") as client:
        (await first(client)).decline()
        await eventually(lambda: "me" in waiting.declined)


async def test_what_is_cancelled_between_two_connections_ends_nothing_on_the_next(
    server: CoreServer, tmp_path: Path
) -> None:
    """The next connection offers something else with the same handle."""
    one = server.offer(DATA)
    async with connect(server.url, receive=True, client_id="me") as client:
        incoming, saving = await _held(client, tmp_path)
        del server.waiting[one.offer.transfer]
        server.cut()
        await eventually(lambda: client.statistics.connections == 2)
        server.offer(DATA, name="other.tif")
        other, saving_other = await _held(client, tmp_path)
        incoming.cancel()
        other.release()
        assert (await saving_other).read_bytes() == DATA
        with pytest.raises(TransferAborted, match="cancelled"):
            await saving


async def _held(client: Client, directory: Path) -> tuple[Incoming, asyncio.Future[Path]]:
    """Start saving what is offered next; it is accepted, and gets no credit yet."""
    incoming = await first(client)
    incoming.hold()
    saving = asyncio.ensure_future(incoming.save(directory))
    await eventually(lambda: incoming.receiving is not None and incoming.receiving.accepted)
    return incoming, saving


async def test_cancel_ends_it_and_drops_what_came(server: CoreServer, tmp_path: Path) -> None:
    waiting = server.offer(DATA)
    async with connect(server.url, receive=True, window=262_144, client_id="me") as client:
        incoming = await first(client)
        saving = asyncio.ensure_future(incoming.save(tmp_path))
        await eventually(lambda: client.statistics.received_bytes > 1_000_000)
        incoming.cancel()
        with pytest.raises(TransferAborted, match="cancelled"):
            await saving
        await eventually(lambda: waiting.aborted)
    assert waiting.aborted == [("me", "cancelled")]
    assert not list((tmp_path / FOLDER).glob("*.part"))


async def test_a_sender_that_cancels_ends_the_save(server: CoreServer, tmp_path: Path) -> None:
    server.offer(DATA)
    async with connect(server.url, receive=True, window=262_144) as client:
        saving = asyncio.ensure_future((await first(client)).save(tmp_path))
        await eventually(lambda: client.statistics.received_bytes > 1_000_000)
        (session,) = server.sessions
        (sender,) = session.core.senders.values()
        session.core.abort(sender, "expired", final=True)
        with pytest.raises(TransferAborted, match="expired"):
            await saving


async def test_a_disk_that_does_not_take_it_is_an_error_that_says_so(server: CoreServer, tmp_path: Path) -> None:
    waiting = server.offer(DATA)
    (tmp_path / "in").write_text("not a directory")
    async with connect(server.url, receive=True) as client:
        with pytest.raises(StorageUnavailable, match="cannot save into"):
            await (await first(client)).save(tmp_path / "in")
        await eventually(lambda: waiting.declined)


async def test_two_who_save_the_same_transfer_in_one_place_are_kept_apart(server: CoreServer, tmp_path: Path) -> None:
    server.offer(DATA)
    async with (
        connect(server.url, receive=True, window=262_144) as one,
        connect(server.url, receive=True) as two,
    ):
        saving = asyncio.ensure_future((await first(one)).save(tmp_path))
        await eventually(lambda: one.statistics.received_bytes)
        with pytest.raises(UsageError, match="saved by somebody else"):
            await (await first(two)).save(tmp_path)
        assert (await saving).read_bytes() == DATA


async def test_damage_on_the_way_is_asked_for_again(
    server: CoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.client import server as module

    encode, sent = frames.encode, 0

    class Damaging:
        HEADER = frames.HEADER

        @staticmethod
        def encode(handle: int, seq: int, data: bytes) -> bytes:
            nonlocal sent
            sent += 1
            message = encode(handle, seq, data)
            return message[:-1] + bytes([message[-1] ^ 1]) if sent in (3, 20) else message

    monkeypatch.setattr(module, "frames", Damaging)
    server.offer(DATA)
    async with connect(server.url, receive=True) as client:
        path = await (await first(client)).save(tmp_path)
    assert path.read_bytes() == DATA


async def test_several_deliveries_are_saved_at_once(server: CoreServer, tmp_path: Path) -> None:
    payloads = {f"{number}.bin": os.urandom(700_000 + number) for number in range(20)}
    for name, data in payloads.items():
        server.offer(data, name)
    async with connect(server.url, receive=True) as client:
        saving = []
        async for incoming in client.deliveries():
            saving.append(asyncio.ensure_future(incoming.save(tmp_path)))
            if len(saving) == 16:
                break
        paths = await asyncio.gather(*saving)
    assert {path.name: path.read_bytes() for path in paths}.items() <= payloads.items()


async def test_without_receive_there_are_no_deliveries(server: CoreServer) -> None:
    async with connect(server.url) as client:
        with pytest.raises(UsageError, match="receive=True"):
            await first(client)


async def test_deliveries_end_when_the_client_is_closed(server: CoreServer) -> None:
    async with connect(server.url, receive=True) as client:
        collecting = asyncio.ensure_future(_all(client))
        await asyncio.sleep(0)
    assert await collecting == []


async def test_deliveries_raise_when_the_connection_cannot_come_back(server: CoreServer) -> None:
    async with connect(server.url, receive=True) as client:
        for session in server.sessions:
            session.ending = (None, 4401)
            session.wake.set()
        with pytest.raises(ConnectionStopped, match="the token is wrong, expired or revoked"):
            await _all(client)


async def _all(client: Client) -> list[Incoming]:
    return [incoming async for incoming in client.deliveries()]
