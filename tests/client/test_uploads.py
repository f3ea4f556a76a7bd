# ruff: noqa: ASYNC230, ASYNC240 - a test may wait for its own small files
from __future__ import annotations

import asyncio
import gc
import hashlib
import io
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from websockets.frames import Close, Frame, Opcode

from delivery.client import connect, connection
from delivery.client.chunk_ceilings import Ceilings
from delivery.errors import ConnectionStopped, IntegrityError, Refused, TransferAborted, UsageError
from delivery.websocket import tcp
from tests.client.conftest import eventually
from tests.client.proxy import Proxy
from tests.client.server import CoreServer

ONE_CHUNK = 262_144


def only(server: CoreServer) -> bytes:
    (stored,) = server.uploads.values()
    return bytes(stored.data)


async def test_a_file_arrives_with_its_digest(server: CoreServer, file: Path) -> None:
    async with connect(server.url) as client:
        receipt = await client.send(file, to=["user:42"])
    assert only(server) == file.read_bytes()
    assert receipt.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert receipt.size == file.stat().st_size
    assert (server.offers[0].name, server.offers[0].to) == ("scan.tif", ("user:42",))
    assert server.offers[0].content_type == "image/tiff"


@pytest.mark.parametrize(
    ("payload", "expected", "content_type"),
    [
        (b"bytes", b"bytes", "application/octet-stream"),
        ("tëxt", "tëxt".encode(), "text/plain; charset=utf-8"),
        ({"a": [1, "ü"]}, '{"a":[1,"ü"]}'.encode(), "application/json"),
        (b"", b"", "application/octet-stream"),
        (memoryview(b"x" * 1_000_001), b"x" * 1_000_001, "application/octet-stream"),
    ],
)
async def test_what_is_in_memory_arrives(
    server: CoreServer, payload: object, expected: bytes, content_type: str
) -> None:
    async with connect(server.url) as client:
        receipt = await client.send(payload)
    assert only(server) == expected
    assert server.offers[0].content_type == content_type
    assert receipt.sha256 == hashlib.sha256(expected).hexdigest()


async def test_a_small_payload_goes_as_early_data(server: CoreServer) -> None:
    """One round trip: chunk and finish follow the offer before any answer."""
    async with connect(server.url) as client:
        gate = asyncio.Event()
        original = server.sessions[0]._write
        assert original is not None
        await client.send(b"small")
        gate.set()
    assert server.sizes == [12 + 5]


@pytest.mark.parametrize("kind", ["plain", "async", "pipe"])
@pytest.mark.parametrize("length", [0, 1, ONE_CHUNK - 1, ONE_CHUNK, ONE_CHUNK + 1, 3 * ONE_CHUNK, 5_000_050])
async def test_an_iterator_of_unknown_size_arrives(server: CoreServer, kind: str, length: int) -> None:
    data = os.urandom(length)
    pieces = [data[at : at + 100_001] for at in range(0, length, 100_001)]

    async def produce():
        for piece in pieces:
            await asyncio.sleep(0)
            yield piece

    class Pipe(io.RawIOBase):
        def seekable(self) -> bool:
            return False

        def read(self, size: int = -1) -> bytes:
            return pieces.pop(0) if pieces else b""

    payload = {"plain": lambda: iter(pieces), "async": produce, "pipe": Pipe}[kind]()
    async with connect(server.url) as client:
        receipt = await client.send(payload)
    assert only(server) == data
    assert receipt.size == length
    assert server.offers[0].size is None


async def test_an_iterator_goes_on_after_a_cut_from_its_replay_buffer(server: CoreServer, proxy: Proxy) -> None:
    server.window = 4 * ONE_CHUNK
    data = os.urandom(6_000_000)
    proxy.cut_after = lambda number: 1_500_000 if number <= 3 else None
    async with connect(proxy.url) as client:
        await client.send(iter([data[at : at + 70_000] for at in range(0, len(data), 70_000)]))
        assert client.statistics.closes[1006] == 3
        assert client.statistics.resumes == 3
    assert only(server) == data


async def test_an_open_file_is_sent_from_where_it_stands(server: CoreServer, file: Path) -> None:
    with open(file, "rb") as opened:
        opened.seek(1000)
        async with connect(server.url) as client:
            await client.send(opened)
        assert not opened.closed
    assert only(server) == file.read_bytes()[1000:]


async def test_resume_after_cuts_sends_at_most_a_window_again(server: CoreServer, proxy: Proxy, file: Path) -> None:
    server.window = 1_048_576
    proxy.cut_after = lambda number: 2_500_000 if number <= 3 else None
    async with connect(proxy.url) as client:
        receipt = await client.send(file)
        assert client.statistics.closes == {1006: 3}
        assert client.statistics.resumes == 3
        assert client.statistics.resent_bytes <= 3 * server.window
    assert only(server) == file.read_bytes()
    assert receipt.size == len(only(server))


async def test_1001_waits_as_told_and_resumes(server: CoreServer, file: Path) -> None:
    server.window = ONE_CHUNK
    told: list[tuple[str, dict]] = []
    async with connect(server.url, observer=lambda *event: told.append(event)) as client:
        upload = client.start(file)
        await eventually(lambda: upload.progress.stored > 1_000_000)
        server.go_away(1001, retry_after=0.123)
        await upload
        assert client.statistics.closes == {1001: 1}
        assert client.statistics.resumes == 1
    (closed,) = [details for name, details in told if name == "closed"]
    assert (closed["code"], closed["wait"]) == (1001, 0.123)
    assert only(server) == file.read_bytes()


async def test_1001_counts_where_our_answer_to_it_does_not_get_through(
    server: CoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "GOING_AWAY_SECONDS", 0.2)
    async with connect(server.url) as client:
        transport = server.sessions[0].socket.transport
        transport.pause_reading()
        server.go_away(1001, retry_after=0.0)
        await eventually(lambda: client.statistics.connections == 2)
        assert client.statistics.closes == {1001: 1}
        transport.abort()


async def test_1009_halves_the_chunks_and_is_remembered_for_the_url(
    server: CoreServer, file: Path, ceilings: Ceilings, tmp_path: Path
) -> None:
    server.refuse = lambda message: 1009 if len(message) > 40_000 else None
    async with connect(server.url, ceilings=ceilings) as client:
        await client.send(file)
        assert client.statistics.closes == {1009: 3}
    assert only(server) == file.read_bytes()
    again = Ceilings(tmp_path / "ceilings.json")
    assert again.get(server.url) == 32_768
    async with connect(server.url, ceilings=again) as client:
        await client.send(file)
        assert not client.statistics.closes


@pytest.mark.parametrize(
    ("seconds", "chosen", "largest"),
    [
        (0.002, None, 524_288),
        (0.003, None, 262_144),
        (None, None, 262_144),
        (0.003, 524_288, 524_288),
        (0.0001, 65_536, 65_536),
    ],
)
async def test_large_chunks_go_to_servers_that_are_near(
    server: CoreServer, monkeypatch: pytest.MonkeyPatch, seconds: float | None, chosen: int | None, largest: int
) -> None:
    server.chunk_size = 1_048_576
    monkeypatch.setattr(tcp, "round_trip", lambda transport: seconds)
    async with connect(server.url, chunk_size=chosen) as client:
        await client.send(os.urandom(2_000_000))
    assert max(server.sizes) == largest + 12


async def test_a_server_far_away_is_told_the_chunk_size_that_is_meant(
    server: CoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it offers larger chunks, and early data in them comes unasked."""
    server.chunk_size = 1_048_576
    monkeypatch.setattr(tcp, "round_trip", lambda transport: 0.05)
    async with connect(server.url) as client:
        assert [hello.chunk_size for hello in server.hellos] == [262_144]
        assert client._recovery.chunk_size == 524_288


async def test_1009_from_a_server_far_away_halves_what_was_sent(
    server: CoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.chunk_size = 1_048_576
    server.refuse = lambda message: 1009 if len(message) > 131_072 + 12 else None
    monkeypatch.setattr(tcp, "round_trip", lambda transport: 0.05)
    async with connect(server.url) as client:
        await client.send(os.urandom(2_000_000))
        assert client.statistics.closes == {1009: 1}


async def test_1009_at_the_floor_names_both_limits(server: CoreServer) -> None:
    server.refuse = lambda message: 1009
    async with connect(server.url, chunk_size=8192) as client:
        with pytest.raises(ConnectionStopped, match=r"4,096 bytes are refused.*2,097,152") as caught:
            await client.send(b"x" * 100_000)
    assert caught.value.code == 1009


async def test_three_losses_in_a_row_count_as_too_big(server: CoreServer, file: Path) -> None:
    server.refuse = lambda message: 1006 if len(message) > 32_768 + 12 else None
    async with connect(server.url) as client:
        await client.send(file)
        assert client.statistics.closes == {1006: 9}
    assert only(server) == file.read_bytes()


async def test_a_black_hole_is_left_after_two_and_a_half_heartbeats(
    server: CoreServer, proxy: Proxy, file: Path
) -> None:
    server.heartbeat = 0.2
    server.window = ONE_CHUNK
    async with connect(proxy.url) as client:
        upload = client.start(file)
        await eventually(lambda: upload.progress.stored > 1_000_000)
        proxy.black_hole = True
        await eventually(lambda: client.statistics.closes[1006] >= 1)
        proxy.black_hole = False
        proxy.cut()
        await upload
    assert only(server) == file.read_bytes()


async def test_progress_on_links_that_live_a_moment(server: CoreServer, proxy: Proxy, file: Path) -> None:
    """Whatever is stored stays stored, so that even connections of 600 KB get 8 MB through."""
    server.window = server.segment = ONE_CHUNK
    proxy.cut_after = lambda number: 700_000
    async with connect(proxy.url) as client:
        await client.send(file, deadline=60)
        assert client.statistics.closes[1006] > 5
    assert only(server) == file.read_bytes()


@pytest.mark.parametrize(("close", "code"), [(Close(1001, "going away"), 1001), (None, 1006)])
async def test_a_cut_is_seen_at_once_although_the_send_buffer_is_full(
    server: CoreServer, file: Path, close: Close | None, code: int
) -> None:
    """The server reads no more, says why or not, and ends its side: all that we have still to send will never go."""
    async with connect(server.url) as client:
        upload = client.start(file)
        await eventually(lambda: server.sizes)
        lost = server.sessions[0].socket.transport
        lost.pause_reading()
        ours = client._connection._socket.transport
        await eventually(lambda: ours.get_write_buffer_size() > 0)
        began = time.monotonic()
        if close is not None:
            lost.write(Frame(Opcode.CLOSE, close.serialize()).serialize(mask=False))
        lost.write_eof()
        await eventually(lambda: client.statistics.closes, 5.0)
        assert time.monotonic() - began < 3.0
        assert client.statistics.closes == {code: 1}
        lost.abort()
        await upload
    assert only(server) == file.read_bytes()


async def test_a_server_that_says_stalled_is_offered_the_upload_again(server: CoreServer, file: Path) -> None:
    """Servers of before said it where the next chunk did not come for a minute."""
    server.of_before = True
    server.window = server.segment = ONE_CHUNK
    async with connect(server.url) as client:
        upload = client.start(file)
        await eventually(lambda: upload.progress.stored > 0)
        upload.pause()
        server.sessions[0].stall()
        await eventually(lambda: not client._connection.core.senders)
        upload.resume()
        receipt = await upload
    assert receipt.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(server.offers) == 2


async def test_a_server_that_counts_chunks_behind_its_pong_is_not_left(server: CoreServer) -> None:
    """Servers of before did. Its acks come every half second, and the client asks after five."""
    server.of_before = True
    server.segment = 64 * 1_048_576
    async with connect(server.url) as client:
        upload = client.start(_slowly())
        receipt = await upload
        assert client.statistics.closes == {}
    assert receipt.size == 14 * 65_536


async def _slowly() -> AsyncIterator[bytes]:
    for _ in range(14):
        yield bytes(65_536)
        await asyncio.sleep(0.5)


async def test_taken_over_is_not_offered_again(server: CoreServer, file: Path) -> None:
    server.window = ONE_CHUNK
    async with connect(server.url) as old, connect(server.url) as new:
        upload = old.start(file)
        await eventually(lambda: upload.progress.stored > 1_000_000)
        upload.pause()
        receipt = await new.send(file, transfer=upload.transfer)
        with pytest.raises(TransferAborted) as caught:
            await upload
        assert caught.value.code == "taken_over"
    assert receipt.sha256 == hashlib.sha256(only(server)).hexdigest()
    assert len(server.offers) == 2


async def test_a_later_process_resumes_by_transfer_id(server: CoreServer, file: Path) -> None:
    server.window = ONE_CHUNK
    async with connect(server.url) as client:
        upload = client.start(file)
        await eventually(lambda: upload.progress.stored > 2_000_000)
    with pytest.raises(ConnectionStopped):
        await upload
    kept = len(only(server))
    async with connect(server.url) as client:
        await client.send(file, transfer=upload.transfer)
        assert client.statistics.sent_bytes == file.stat().st_size - kept
        assert client.statistics.resumes == 1
    assert only(server) == file.read_bytes()


async def test_damage_on_the_way_is_sent_again(server: CoreServer, file: Path) -> None:
    damaged = 0
    original = server.refuse

    async with connect(server.url) as client:
        session = server.sessions[0]
        receive = session.core.receive_bytes

        def receive_damaged(message: bytes, now: float):
            nonlocal damaged
            if damaged < 2 and len(server.sizes) % 7 == 6:
                damaged += 1
                message = message[:-1] + bytes([message[-1] ^ 1])
            return receive(message, now)

        session.core.receive_bytes = receive_damaged
        await client.send(file)
    assert original is server.refuse
    assert damaged == 2
    assert only(server) == file.read_bytes()


@pytest.mark.parametrize("code", ["busy", "rate", "draining"])
async def test_what_may_pass_is_offered_again(server: CoreServer, code: str) -> None:
    server.answer = lambda offer: {"code": code, "retry_after": 0.05} if len(server.offers) < 3 else None
    async with connect(server.url) as client:
        await client.send(b"x")
    assert len(server.offers) == 3


async def test_a_refusal_is_an_error_with_its_code(server: CoreServer) -> None:
    server.answer = lambda offer: {"code": "too_large", "max_size": 1000}
    async with connect(server.url) as client:
        with pytest.raises(Refused, match="at most 1,000 bytes") as caught:
            await client.send(b"x")
    assert (caught.value.code, caught.value.max_size) == ("too_large", 1000)


async def test_lost_done_is_asked_for_again(server: CoreServer, file: Path) -> None:
    times = 0

    def drop_once() -> bool:
        nonlocal times
        times += 1
        return times > 1

    server.before_done = drop_once
    async with connect(server.url) as client:
        receipt = await client.send(file)
        assert client.statistics.resent_bytes == 0
    assert receipt.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(server.offers) == 2


async def test_pause_stops_and_resume_goes_on(server: CoreServer, file: Path) -> None:
    server.window = ONE_CHUNK
    async with connect(server.url) as client:
        upload = client.start(file)
        await eventually(lambda: upload.progress.stored > 1_000_000)
        upload.pause()
        await eventually(lambda: upload.progress.stored == client.statistics.sent_bytes)
        small = await client.send(b"others are not held up")
        assert small.size == 22
        assert not upload.done
        upload.resume()
        await upload


async def test_cancel_ends_it_on_the_server_too(server: CoreServer, file: Path) -> None:
    server.window = ONE_CHUNK
    async with connect(server.url) as client:
        upload = client.start(file)
        await eventually(lambda: upload.progress.stored > 1_000_000)
        upload.cancel()
        with pytest.raises(TransferAborted, match="cancelled"):
            await upload
        await eventually(lambda: server.uploads[upload.transfer].cancelled)


async def test_cancel_while_disconnected_is_told_later(server: CoreServer, proxy: Proxy, file: Path) -> None:
    server.window = ONE_CHUNK
    async with connect(proxy.url) as client:
        upload = client.start(file)
        await eventually(lambda: upload.progress.stored > 1_000_000)
        upload.pause()
        proxy.cut()
        await eventually(lambda: upload.sending is None)
        upload.cancel()
        await eventually(lambda: server.uploads[upload.transfer].cancelled)


async def test_cancel_before_a_read_has_begun_leaves_nothing_behind(server: CoreServer, file: Path) -> None:
    """The task of the read is cancelled before its first step: a coroutine that nobody awaits would be complained of."""
    await _cancel_before_reading(server, file)
    gc.collect()


async def _cancel_before_reading(server: CoreServer, file: Path) -> None:
    server.window = ONE_CHUNK
    async with connect(server.url) as client:
        upload = client.start(file)
        await eventually(lambda: upload.progress.stored > 1_000_000)
        server.sessions[0].frozen = True
        await eventually(lambda: upload.sending._task is None and not upload.sending._ready)
        upload.sending.want_digest()
        upload.cancel()
        with pytest.raises(TransferAborted, match="cancelled"):
            await upload


async def test_a_deadline_keeps_what_the_server_has(server: CoreServer, file: Path) -> None:
    server.window = ONE_CHUNK
    async with connect(server.url) as client:
        await client.send(b"warm")
        server.sessions[0].frozen = True
        with pytest.raises(TimeoutError, match="can be resumed"):
            await client.send(file, deadline=0.2)


async def test_a_file_that_changes_between_attempts_fails_visibly(server: CoreServer, proxy: Proxy, file: Path) -> None:
    server.window = ONE_CHUNK
    async with connect(proxy.url) as client:
        upload = client.start(file)
        await eventually(lambda: upload.progress.stored > 1_000_000)
        upload.pause()
        with open(file, "r+b") as opened:
            opened.write(b"changed")
            opened.truncate(5_000_000)
        proxy.cut()
        await eventually(lambda: upload.sending is None)
        upload.resume()
        with pytest.raises(IntegrityError, match="changed"):
            await upload
        await eventually(lambda: server.uploads[upload.transfer].cancelled)


async def test_an_iterator_that_raises_fails_its_upload_only(server: CoreServer) -> None:
    def broken():
        yield b"x" * 1000
        raise RuntimeError("the producer broke")

    async with connect(server.url) as client:
        with pytest.raises(RuntimeError, match="the producer broke"):
            await client.send(broken())
        assert (await client.send(b"fine")).size == 4


async def test_a_small_payload_passes_between_chunks_of_a_large_one(server: CoreServer, file: Path) -> None:
    server.window = ONE_CHUNK
    async with connect(server.url) as client:
        large = client.start(file)
        await eventually(lambda: large.progress.stored > 0)
        await client.send("small")
        assert not large.done
        await large


async def test_login_refused_says_what_to_do(server: CoreServer) -> None:
    server.token = "right"
    with pytest.raises(ConnectionStopped, match=r"manage\.py delivery_token USER") as caught:
        async with connect(server.url, "wrong"):
            pass
    assert caught.value.code == 4401
    async with connect(server.url, "right") as client:
        await client.send(b"x")


async def test_http_403_says_what_to_do(server: CoreServer) -> None:
    server.token = "forbidden"
    with pytest.raises(ConnectionStopped, match="there is no token"):
        async with connect(server.url):
            pass


async def test_a_server_that_is_not_there_yet_is_waited_for(server: CoreServer) -> None:
    await server.stop()
    port = server.port

    async def come_back() -> None:
        await server.start(port)

    connecting = asyncio.ensure_future(connect(server.url).__aenter__())
    await come_back()
    client = await connecting
    await client.send(b"x")
    await client.close()


async def test_open_timeout_gives_up(server: CoreServer) -> None:
    await server.stop()
    with pytest.raises(TimeoutError):
        async with connect(server.url, open_timeout=0.1):
            pass


async def test_a_stopping_code_fails_what_runs(server: CoreServer, file: Path) -> None:
    server.window = ONE_CHUNK
    async with connect(server.url) as client:
        upload = client.start(file)
        await eventually(lambda: upload.progress.stored > 0)
        for session in server.sessions:
            session.ending = (None, 4401)
            session.wake.set()
        with pytest.raises(ConnectionStopped):
            await upload
        with pytest.raises(ConnectionStopped):
            await client.send(b"x")


@pytest.mark.parametrize("payload", [42, None, ["not json", object()], io.StringIO("text")])
async def test_what_cannot_be_sent_is_refused_here(server: CoreServer, payload: object) -> None:
    async with connect(server.url) as client:
        with pytest.raises((UsageError, TypeError)):
            await client.send(payload)


def test_importing_the_client_needs_no_django() -> None:
    import subprocess
    import sys

    code = "import sys, delivery.client; print([name for name in ('django', 'redis', 'rich') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout.replace("'", '"')) == []
