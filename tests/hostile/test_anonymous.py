"""What people cost who have no login: a hundred sockets that send as fast as they can, and bodies of any length."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.conftest import MIB, Open, Target
from tests.hostile.wire import BINARY, CONT, PING, TEXT, Wire, frame, said
from tests.stack import Person, WebProcess

SOCKETS = 100
ATTACK_SECONDS = 2.5
MOST_GROWTH = 40 * MIB  # all of them together
MAX_MESSAGE = 2 * MIB
LOGGED_IN = 15


class Memory:
    """The most memory that the web process has, from entering to leaving. Kept by a thread, whatever the loop does."""

    def __init__(self, web: WebProcess) -> None:
        self._status = Path(f"/proc/{web.pid}/statm")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.before = self.most = self._rss()

    def _rss(self) -> int:
        return int(self._status.read_text().split()[1]) * 4096

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.most = max(self.most, self._rss())

    @property
    def growth(self) -> int:
        return self.most - self.before

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()


def deflated() -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(bytes(50_000_000)) + packer.flush(zlib.Z_SYNC_FLUSH)


#: What is sent over and over until the server ends TCP. `slow` ones stay just below every limit and never end a message.
FLOODS = {
    "messages of 60 MiB": frame(BINARY, bytes(60 * MIB)),
    "texts of 60 MiB": frame(TEXT, bytes(60 * MIB)),
    "a message of 60 MiB in fragments": frame(BINARY, bytes(60_000), fin=False)
    + frame(CONT, bytes(60_000), fin=False) * 1000,
    "a text of tiny fragments": frame(TEXT, b"x", fin=False) + frame(CONT, b"x", fin=False) * 100_000,
    "empty fragments": frame(TEXT, b"", fin=False) + frame(CONT, b"", fin=False) * 100_000,
    "tiny messages": frame(TEXT, b"{}") * 100_000,
    "hellos": said("hello", client="c", max_message=65_548, token="x" * 60_000) * 50,
    "pings": frame(PING, bytes(125)) * 50_000,
    "compressed messages": frame(TEXT, deflated(), rsv=4) * 20,
    "all but the end of a message": frame(BINARY, bytes(65_536))[:-1],
    "all but the end of a fragmented text": frame(TEXT, bytes(60_000), fin=False) + frame(CONT, bytes(5_536))[:-1],
}


async def flood(port: int, data: bytes, until: float) -> None:
    """Send without end; when the server ends TCP, begin again on a new socket."""
    view = memoryview(data)
    loop = asyncio.get_running_loop()
    while loop.time() < until:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            async with asyncio.timeout_at(until), Wire.open(port, reads=False) as wire:
                while True:
                    for at in range(0, len(view), 262_144):
                        wire.writer.write(view[at : at + 262_144])
                        await wire.writer.drain()
                    if len(view) < 100_000:  # it must not go on
                        await asyncio.sleep(1)
                        break


@pytest.fixture
def web(target: Target) -> Iterator[WebProcess]:
    """A web process that nobody has attacked yet: what its allocator keeps would hide the next attack."""
    process = WebProcess(target.stack, "tests.hostile.settings")
    try:
        yield process
    finally:
        process.stop()


@pytest.mark.parametrize("data", FLOODS.values(), ids=FLOODS)
async def test_anonymous_sockets_cost_little_memory(web: WebProcess, data: bytes) -> None:
    async with Wire.open(web.port) as wire:
        await wire.say("hello", client="c", max_message=65_548)
        assert (await wire.closes())[0] == 4401  # its first connection loads what all of them need
    with Memory(web) as memory:
        until = asyncio.get_running_loop().time() + ATTACK_SECONDS
        await asyncio.gather(*(flood(web.port, data, until) for _ in range(SOCKETS)))
    print(f"{memory.growth / MIB:.0f} MiB")
    assert memory.growth < MOST_GROWTH, f"{memory.growth / MIB:.0f} MiB"


async def test_whoever_is_logged_in_gets_what_was_announced_and_no_more(
    web: WebProcess, open_wire: Open, mallory: Person
) -> None:
    wires = [await open_wire(mallory, port=web.port) for _ in range(LOGGED_IN)]
    large = frame(BINARY, bytes(60 * MIB))
    with Memory(web) as memory:
        await asyncio.gather(*(wire.send(large) for wire in wires))
        assert [await wire.closes() for wire in wires] == [(1009, "message too big")] * LOGGED_IN
    assert memory.growth < LOGGED_IN * 2 * MAX_MESSAGE, f"{memory.growth / MIB:.0f} MiB"


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
async def test_an_anonymous_post_does_not_fill_the_disk(target: Target, *, chunked: bool) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    size = 200 * MIB
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
    writer.write(b"POST /admin/login/ HTTP/1.1\r\nHost: 127.0.0.1\r\n" + length + b"\r\n\r\n")
    piece = bytes(MIB)
    sent = 0
    with contextlib.suppress(OSError):
        for _ in range(200):
            writer.write(b"%x\r\n" % MIB + piece + b"\r\n" if chunked else piece)
            await writer.drain()
            sent += MIB
            if reader.at_eof() or reader._buffer:  # type: ignore[attr-defined]
                break
    assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 413")
    assert sent < 60 * MIB
    writer.close()
