"""What an upload reads from, over real sockets: only its own end is an end, and everything else fails visibly."""

# ruff: noqa: ASYNC230 - a test may wait for its own small files
from __future__ import annotations

import asyncio
import hashlib
import io
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from delivery.client import connect
from delivery.client.sources import FileSource
from delivery.errors import ConnectionStopped, DeliveryError, IntegrityError, TransferAborted, UsageError
from tests.client.conftest import eventually
from tests.client.feeding import BLOCK, KINDS, Feeding
from tests.client.proxy import Proxy
from tests.client.server import CoreServer

CHUNK = 4096


@pytest.fixture(params=KINDS)
def feeding(request: pytest.FixtureRequest) -> Iterator[Feeding]:
    feeding = Feeding(request.param)
    yield feeding
    feeding.end()  # lets go of a thread that waits


def only(server: CoreServer) -> bytes:
    (stored,) = server.uploads.values()
    return bytes(stored.data)


async def until_pulling(feeding: Feeding) -> None:
    """Wait until everything that was given is pulled, and the producer is asked for more."""
    await eventually(lambda: feeding.inside and not feeding._blocks)


# -- cuts --------------------------------------------------------------------------------------------------------------


async def test_a_pull_outlives_its_connection(server: CoreServer, proxy: Proxy, feeding: Feeding) -> None:
    """Cut while the producer is asked for a block: the next connection waits for the same one."""
    async with connect(proxy.url, chunk_size=CHUNK) as client:
        upload = client.start(feeding.payload())
        for number in range(3):
            await until_pulling(feeding)
            pulls = feeding.pulls
            proxy.cut()
            await eventually(lambda number=number: client.statistics.connections == number + 2)
            await eventually(lambda: upload.sending is not None)
            assert feeding.pulls == pulls
            feeding.give()
        feeding.end()
        receipt = await asyncio.wait_for(upload, 10)
    assert only(server) == feeding.given
    assert receipt.sha256 == hashlib.sha256(feeding.given).hexdigest()
    assert receipt.size == 3 * BLOCK


async def test_an_async_generator_of_2_4_megabytes_survives_cuts(server: CoreServer, proxy: Proxy) -> None:
    """Each connection is cut while a block is being produced, which is given only when the next one is there."""
    data = os.urandom(2_400_000)
    cuts = 0

    async def produce() -> AsyncIterator[bytes]:
        nonlocal cuts
        for at in range(0, len(data), 50_000):
            if at % 400_000 == 200_000:
                seen, cuts = client.statistics.connections, cuts + 1
                asyncio.get_running_loop().call_soon(proxy.cut)
                await eventually(lambda seen=seen: client.statistics.connections > seen)
            yield data[at : at + 50_000]

    async with connect(proxy.url, chunk_size=65_536) as client:
        receipt = await asyncio.wait_for(client.send(produce()), 30)
        assert client.statistics.closes[1006] == cuts == 6
    assert only(server) == data
    assert (receipt.size, receipt.sha256) == (len(data), hashlib.sha256(data).hexdigest())


async def test_an_error_of_the_producer_between_two_connections_is_not_its_end(
    server: CoreServer, proxy: Proxy, feeding: Feeding
) -> None:
    """A generator that raised looks ended to whoever asks again."""
    async with connect(proxy.url, chunk_size=CHUNK) as client:
        upload = client.start(feeding.payload())
        feeding.give()
        await until_pulling(feeding)
        port, proxy.target = proxy.target, 1
        proxy.cut()
        await eventually(lambda: upload.sending is None)
        feeding.fail(LookupError("the producer broke"))
        await eventually(lambda: not feeding._blocks)
        proxy.target = port
        with pytest.raises(LookupError, match="the producer broke"):
            await asyncio.wait_for(upload, 10)
    assert not any(stored.sha256 for stored in server.uploads.values())


async def test_a_producer_that_is_cancelled_has_not_ended(server: CoreServer) -> None:
    """What it awaits may be cancelled by somebody else: that is neither its end nor the upload's."""

    async def produce() -> AsyncIterator[bytes]:
        yield b"x" * CHUNK
        inner = asyncio.ensure_future(asyncio.sleep(10))
        inner.cancel()
        await inner

    async with connect(server.url, chunk_size=CHUNK) as client:
        with pytest.raises(IntegrityError, match="CancelledError"):
            await asyncio.wait_for(client.send(produce()), 10)
        assert (await client.send(b"fine")).size == 4
    assert [bytes(stored.data) for stored in server.uploads.values() if stored.sha256] == [b"fine"]


@pytest.mark.parametrize("kind", ["plain", "async"])
@pytest.mark.parametrize("block", [None, "text", 5])
async def test_a_block_that_is_no_bytes_is_no_end(server: CoreServer, kind: str, block: Any) -> None:
    def plain() -> Iterator[Any]:
        yield from (b"begin", block, b"end")

    async def produce() -> AsyncIterator[Any]:
        for each in plain():
            yield each

    async with connect(server.url) as client:
        with pytest.raises(UsageError, match="iterator of bytes"):
            await asyncio.wait_for(client.send(plain() if kind == "plain" else produce()), 10)
    assert not any(stored.sha256 for stored in server.uploads.values())


async def test_empty_blocks_are_no_end(server: CoreServer) -> None:
    async with connect(server.url) as client:
        await client.send(iter([b"", b"one", b"", b"two", b""]))
    assert only(server) == b"onetwo"


async def test_a_block_that_is_used_again_is_sent_as_it_was(server: CoreServer) -> None:
    def produce() -> Iterator[bytearray]:
        buffer = bytearray(CHUNK)
        for number in range(20):
            buffer[:] = bytes([number]) * CHUNK
            yield buffer

    async with connect(server.url, chunk_size=CHUNK) as client:
        await client.send(produce())
    assert only(server) == b"".join(bytes([number]) * CHUNK for number in range(20))


# -- pauses ------------------------------------------------------------------------------------------------------------


async def test_a_pause_of_the_producer_survives_a_server_that_calls_it_a_stall(
    server: CoreServer, feeding: Feeding
) -> None:
    """Servers of before said `stalled` to whoever sent nothing for 60 s."""
    async with connect(server.url, chunk_size=CHUNK) as client:
        upload = client.start(feeding.payload())
        for _ in range(3):
            feeding.give()
            await until_pulling(feeding)
            await eventually(lambda: upload.sending is not None)
            session = server.sessions[0]
            await eventually(lambda session=session: session.core.receivers)
            for receiver in list(session.core.receivers.values()):
                session.core.abort(receiver, "stalled", final=False)
            session.wake.set()
            await eventually(lambda: upload.sending is None)
        feeding.end()
        await asyncio.wait_for(upload, 20)
    assert only(server) == feeding.given


async def test_an_upload_says_that_it_waits_for_its_source(server: CoreServer, feeding: Feeding) -> None:
    async with connect(server.url, chunk_size=CHUNK) as client:
        upload = client.start(feeding.payload())
        feeding.give(2 * CHUNK)
        await eventually(lambda: upload.waits_for_source)
        feeding.end()
        await asyncio.wait_for(upload, 10)
        assert not upload.waits_for_source


# -- the end of an upload ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["generator", "async generator"])
@pytest.mark.parametrize("how", ["cancel", "detach", "deadline", "close", "refused"])
async def test_the_pull_ends_with_the_upload(server: CoreServer, kind: str, how: str) -> None:
    """The generator's own cleaning up runs, at the latest when the block it waits for has come."""
    feeding = Feeding(kind)
    if how == "refused":
        server.answer = lambda offer: {"code": "forbidden"}
    async with connect(server.url, chunk_size=CHUNK) as client:
        if how == "deadline":
            with pytest.raises(TimeoutError):
                await client.send(feeding.payload(), deadline=0.1)
        else:
            upload = client.start(feeding.payload())
            if how != "refused":
                await until_pulling(feeding)
            if how in ("cancel", "detach"):
                getattr(upload, how)()
            elif how == "close":
                await client.close()
            with pytest.raises(DeliveryError):
                await asyncio.wait_for(upload, 10)
        if kind == "generator":
            feeding.give()
        if how != "refused":  # a generator that never began has nothing to clean up
            await eventually(lambda: feeding.closed)
            assert not feeding.inside


async def test_a_generator_that_will_not_end_holds_nobody(server: CoreServer) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))

    async def produce() -> AsyncIterator[bytes]:
        for _ in range(2):  # does not end when cancelled, nor when closed
            with suppress(BaseException):
                yield b"x" * CHUNK
                await asyncio.sleep(10)
        yield b"more"

    async with connect(server.url, chunk_size=CHUNK) as client:
        upload = client.start(produce())
        await eventually(lambda: upload.progress.stored > 0)
        upload.cancel()
        with pytest.raises(TransferAborted, match="cancelled"):
            await upload
        assert (await client.send(b"fine")).size == 4
    assert any("ignored GeneratorExit" in str(context.get("exception")) for context in complaints)


@pytest.mark.parametrize("how", ["library", "command"])
def test_a_read_blocked_in_stdin_does_not_hold_the_exit(how: str, tmp_path: Path) -> None:
    """The producer goes on for ever; who sends has given up, and leaves with its own status."""
    library = """
import asyncio, sys
from delivery.client import connect
from tests.client.server import CoreServer

async def main():
    server = CoreServer()
    await server.start()
    async with connect(server.url) as client:
        try:
            await client.send(sys.stdin.buffer, deadline=0.3)
        except TimeoutError:
            print("gave up", flush=True)
    await server.stop()

asyncio.run(main())
"""
    command = """
import asyncio, os, signal, sys
from delivery.client.__main__ import main
from tests.client.server import CoreServer
import threading
ready, urls = threading.Event(), []
def serve():
    async def work():
        server = CoreServer()
        await server.start()
        urls.append(server.url)
        ready.set()
        await asyncio.sleep(60)
    asyncio.run(work())
threading.Thread(target=serve, daemon=True).start()
ready.wait(10)
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
status = main(["send", "-", "--url", urls[0], "--json"])
print("gave up" if status == 130 else status, flush=True)
sys.exit(0)
"""
    reading, writing = os.pipe()
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": os.getcwd()}
    program = subprocess.Popen(
        [sys.executable, "-c", library if how == "library" else command],
        stdin=reading,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    try:
        os.write(writing, b"x" * 1000)
        out, errors = program.communicate(timeout=20)
    finally:
        program.kill()
        program.wait()
        os.close(reading)
        os.close(writing)
    assert (program.returncode, b"gave up" in out) == (0, True), errors.decode()


# -- files that cannot be sought ---------------------------------------------------------------------------------------


async def test_a_pipe_that_does_not_block_has_not_ended(server: CoreServer) -> None:
    """Its reader gets nothing while nothing is there: `read1` calls that b""."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(reading, "rb") as file, os.fdopen(writing, "wb", buffering=0) as producer:
        async with connect(server.url, chunk_size=CHUNK) as client:
            upload = client.start(file)
            for _ in range(3):
                await eventually(lambda: upload.waits_for_source)
                producer.write(b"x" * 2 * CHUNK)
            producer.close()
            await asyncio.wait_for(upload, 10)
    assert only(server) == b"x" * 6 * CHUNK


@pytest.mark.parametrize("late", [False, True])
async def test_what_lies_in_the_buffer_of_a_pipe_is_sent_first(server: CoreServer, late: bool) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as file, os.fdopen(writing, "wb", buffering=0) as producer:
        producer.write(b"header\nbegin ")
        assert file.readline() == b"header\n"
        if not late:
            producer.write(b"end")
            producer.close()
        async with connect(server.url) as client:
            upload = client.start(file)
            if late:
                await eventually(lambda: upload.sending is not None)
                producer.write(b"end")
                producer.close()
            await asyncio.wait_for(upload, 10)
    assert only(server) == b"begin end"


async def test_a_named_pipe_is_opened_beside_the_loop(server: CoreServer, tmp_path: Path) -> None:
    """Opening one waits for its writer."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    async with connect(server.url) as client:
        upload = client.start(path)
        assert (await client.send(b"meanwhile")).size == 9
        writing = threading.Thread(target=lambda: path.write_bytes(b"through a pipe"))
        writing.start()
        receipt = await asyncio.wait_for(upload, 10)
        writing.join()
    assert bytes(server.uploads[receipt.transfer].data) == b"through a pipe"


class NotBlocking(io.RawIOBase):
    """A file of a program's own that says None where nothing is there yet."""

    def __init__(self) -> None:
        self.left: list[bytes | None] = [b"begin", None, None, b"end"]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        piece = self.left.pop(0) if self.left else b""
        if piece is None:
            return None
        buffer[: len(piece)] = piece
        return len(piece)


@pytest.mark.parametrize("wrap", [lambda raw: raw, io.BufferedReader])
async def test_a_file_that_says_nothing_is_there_fails_visibly(
    server: CoreServer, wrap: Callable[[NotBlocking], Any]
) -> None:
    async with connect(server.url) as client:
        with pytest.raises(IntegrityError, match="does not block"):
            await asyncio.wait_for(client.send(wrap(NotBlocking())), 10)
    assert not any(stored.sha256 for stored in server.uploads.values())


@pytest.mark.parametrize("sent", [b"0123456789", b"01234"])
async def test_an_http_response_that_was_cut_fails_visibly(server: CoreServer, sent: bytes) -> None:
    class Socket:
        def makefile(self, mode: str) -> io.BytesIO:
            return io.BytesIO(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n" + sent)

    response = HTTPResponse(Socket())  # type: ignore[arg-type]
    response.begin()
    async with connect(server.url) as client:
        if len(sent) == 10:
            await client.send(response)
            assert only(server) == sent
        else:
            with pytest.raises(IntegrityError, match="5 bytes"):
                await client.send(response)


# -- what the server has -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["file", "bytes", "iterator"])
async def test_a_receipt_is_about_these_bytes(server: CoreServer, tmp_path: Path, shape: str) -> None:
    """A transfer that is complete at the server already is compared with what was to be sent."""

    def payload(data: bytes) -> Any:
        if shape == "file":
            (tmp_path / "file.bin").write_bytes(data)
            return tmp_path / "file.bin"
        return data if shape == "bytes" else iter([data[:50_000], data[50_000:]])

    first, other = os.urandom(100_000), os.urandom(100_000)
    async with connect(server.url) as client:
        receipt = await client.send(payload(first))
        again = await client.send(payload(first), transfer=receipt.transfer)
        assert again.sha256 == receipt.sha256
        with pytest.raises(IntegrityError, match="other bytes"):
            await client.send(payload(other), transfer=receipt.transfer)
        with pytest.raises((IntegrityError, ConnectionStopped)):
            await client.send(iter([first[:-1]]), transfer=receipt.transfer)


async def test_a_stream_that_is_shorter_than_what_the_server_has_fails_alone(
    server: CoreServer, feeding: Feeding
) -> None:
    async with connect(server.url, chunk_size=CHUNK) as client:
        upload = client.start(feeding.payload())
        feeding.give(10 * CHUNK)
        await eventually(lambda: upload.progress.stored >= 5 * CHUNK)
        upload.detach()
        with pytest.raises(TransferAborted):
            await upload
        with pytest.raises(IntegrityError, match="bytes"):
            await asyncio.wait_for(client.send(iter([b"x" * CHUNK]), transfer=upload.transfer), 10)
        assert (await client.send(b"fine")).size == 4


# -- files -------------------------------------------------------------------------------------------------------------


async def test_the_digest_is_right_while_a_thread_of_a_lost_connection_still_reads(tmp_path: Path) -> None:
    """Two threads in one source: each block is hashed once, in order."""
    data = os.urandom(4_000_000)
    path = tmp_path / "file.bin"
    path.write_bytes(data)
    with ThreadPoolExecutor(4) as pool:
        for number in range(20):
            source = FileSource(open(path, "rb", buffering=0), "file.bin", own=True)  # noqa: SIM115
            reads = [
                pool.submit(source.read_into, memoryview(bytearray(200_000)), at) for at in range(0, len(data), 100_000)
            ]
            if number % 2:
                source.resumed_at(3_000_000, pool)
            await asyncio.gather(*(asyncio.wrap_future(read) for read in reads))
            assert await source.digest(pool) == hashlib.sha256(data).hexdigest()
            source.close()


async def test_a_file_is_closed_when_its_last_reader_has_left(tmp_path: Path) -> None:
    """Else a thread would read from whatever gets the same descriptor next."""
    path = tmp_path / "file.bin"
    path.write_bytes(b"x" * 1000)
    entered, go_on = threading.Event(), threading.Event()

    class Slow(FileSource):
        def _read_once(self, view: memoryview, offset: int) -> int:
            entered.set()
            go_on.wait(10)
            return super()._read_once(view, offset)

    file = open(path, "rb", buffering=0)  # noqa: SIM115
    source = Slow(file, "file.bin", own=True)
    reading = asyncio.ensure_future(asyncio.to_thread(source.read_into, memoryview(bytearray(1000)), 0))
    await eventually(entered.is_set)
    source.close()
    assert not file.closed
    go_on.set()
    assert await reading == 1000
    assert file.closed
    with pytest.raises(OSError, match="closed"):
        source.read_into(memoryview(bytearray(10)), 0)


@pytest.mark.parametrize("mode", ["path", "open"])
@pytest.mark.parametrize("change", ["rewrite", "grow", "shrink"])
async def test_a_file_that_changes_while_it_is_sent_fails_visibly(
    server: CoreServer, tmp_path: Path, mode: str, change: str
) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(os.urandom(40 * CHUNK))
    os.utime(path, (1_000_000, 1_000_000))
    server.window = 4 * CHUNK
    with open(path, "rb") as opened:
        async with connect(server.url, chunk_size=CHUNK) as client:
            server.sessions[0].frozen = True
            upload = client.start(path if mode == "path" else opened)
            await eventually(lambda: upload.progress.received == 4 * CHUNK)
            with open(path, "r+b") as file:
                if change == "rewrite":
                    file.write(b"other")
                else:
                    file.truncate(41 * CHUNK if change == "grow" else 3 * CHUNK)
            server.sessions[0].frozen = False
            with pytest.raises(IntegrityError, match=r"changed|shorter"):
                await asyncio.wait_for(upload, 10)
    assert not any(stored.sha256 for stored in server.uploads.values())
