"""A connection that is gone leaves memory at once, and so does a message that is stored.

Nothing of them waits for Python's collector of cycles.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from delivery.auth import Refusal
from delivery.errors import TransferAborted
from delivery.protocol.frames import Chunk, checksum
from delivery.protocol.messages import UploadOffer
from delivery.protocol.receiver import Receiver
from delivery.server import plain, web_process
from delivery.server.connection import ServerConnection
from delivery.server.ports import ConnectionPart
from delivery.server.upload import Reports, UploadReceiver


@pytest.fixture(autouse=True)
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(autouse=True)
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(sockets=set(), presence=SimpleNamespace(leave=lambda _connection: None))
    monkeypatch.setattr(web_process, "current", lambda: found)


class Socket:
    """A consumer, as far as a connection sees it."""

    channel_name = "channel"

    def __init__(self) -> None:
        self.connection: ServerConnection | None = None
        self.sent: list[Any] = []

    async def send_text(self, text: str) -> None:
        self.sent.append(text)

    def abandon(self) -> None:
        self.sent.append("abandoned")

    def incomplete_at(self) -> float:
        return 0.0

    async def close(self, code: int, reason: str) -> None:
        self.sent.append(code)


async def test_a_connection_is_freed_when_it_ends() -> None:
    socket = Socket()
    socket.connection = connection = ServerConnection(socket, Refusal.MISSING)  # type: ignore[arg-type]
    connection.start()
    connection.spawn(connection.downloads.run(), "offering")
    await asyncio.sleep(0)
    connection.close(1001, "going away")
    await asyncio.sleep(0.01)
    assert socket.sent == [1001]
    await connection.end(1001)
    left = weakref.ref(connection)
    del connection
    socket.connection = None
    assert left() is None


async def test_what_is_asked_of_the_database_outlives_its_connection() -> None:
    async def db(function: Any) -> Any:
        return function()

    web_process.current().db = db  # type: ignore[method-assign, assignment]
    connection = ServerConnection(Socket(), Refusal.MISSING)  # type: ignore[arg-type]
    asking = connection.db(lambda: 42)
    left = weakref.ref(connection)
    del connection
    assert left() is None
    assert await asking == 42


def test_a_part_says_that_its_connection_is_gone() -> None:
    class Owner:
        pass

    owner = Owner()
    part = ConnectionPart(owner)  # type: ignore[arg-type]
    assert part._connection is owner
    del owner
    with pytest.raises(RuntimeError, match="gone"):
        _ = part._connection


class Message(bytearray):
    """A message to which a weak reference can be held."""


class Taking:
    """Takes in a message, as far as who sends it sees."""

    fails = False

    def __init__(self, _process: object, receiver: Receiver, _opened: object, reports: Reports) -> None:
        self.receiver, self.reports = receiver, reports
        self.kept: list[Chunk] = []
        self.woken = asyncio.Event()

    def keep(self, chunk: Chunk) -> None:
        self.kept.append(chunk)

    def wake(self) -> None:
        self.woken.set()

    async def run(self) -> str:
        await self.woken.wait()
        if self.fails:
            raise TransferAborted("too_large")
        return "finished"


def upload(size: int) -> UploadOffer:
    return UploadOffer(transfer=str(uuid4()), handle=1, name="", size=size, content_type="", chunk_size=524_288, to=())


@pytest.mark.parametrize("fails", [False, True])
async def test_a_whole_message_is_freed_when_it_is_stored_or_refused(
    monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    monkeypatch.setattr(Taking, "fails", fails)
    monkeypatch.setattr(plain, "UploadReceiver", Taking)
    data = Message(2_000_000)
    left = weakref.ref(data)
    opened: Any = SimpleNamespace(inline=False, max_size=len(data))
    sending = plain._WholeSender(None, upload(len(data)), opened, data)  # type: ignore[arg-type]
    try:
        assert await sending.run() == "finished"  # type: ignore[comparison-overlap]
    except TransferAborted:
        assert fails
    del data, sending
    await asyncio.sleep(0)  # the loop lets go of the tasks that have ended
    assert left() is None


async def test_what_an_upload_took_in_is_freed_with_it() -> None:
    receiver = Receiver(upload(4096))
    reports = Reports(changed=lambda: None, rewind=lambda *_: None, confirm=asyncio.Event().wait)  # type: ignore[arg-type]
    opened: Any = SimpleNamespace(payload=uuid4(), lease=1, transfer=uuid4())
    receiving = UploadReceiver(SimpleNamespace(chunks=None), receiver, opened, reports)  # type: ignore[arg-type]
    left = weakref.ref(receiving)
    receiving.keep(Chunk(1, 0, checksum(b"x"), memoryview(b"x")))
    del receiving
    assert left() is None
