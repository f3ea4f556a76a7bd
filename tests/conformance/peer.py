"""A client written from PROTOCOL.md alone: it shares no code with `delivery`, and does only what a test tells it to."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import struct
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Self

import crc32c
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

SECONDS = 10.0
CHUNK = 262_144


@dataclass(frozen=True)
class Chunk:
    """A chunk as it came."""

    handle: int
    seq: int
    checksum: int
    data: bytes

    @property
    def intact(self) -> bool:
        return crc32c.crc32c(self.data) == self.checksum


def frame(handle: int, seq: int, data: bytes, checksum: int | None = None) -> bytes:
    """Return a chunk's message; `checksum` lies on demand."""
    return struct.pack(">III", handle, seq, crc32c.crc32c(data) if checksum is None else checksum) + data


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def new_id() -> str:
    return str(uuid.uuid4())


class Peer:
    """One socket. What comes is kept in order; `hear` takes the first message that fits and leaves the others."""

    def __init__(self, socket: ClientConnection, *, answers: bool) -> None:
        self.socket = socket
        self.answers = answers  # the server's pings
        self.heard: list[dict[str, Any] | Chunk] = []
        self.welcome: dict[str, Any] = {}
        self._changed = asyncio.Condition()
        self._closed = False
        self._handle = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        url: str,
        *,
        token: str | None = None,
        subprotocols: tuple[str, ...] | None = ("delivery.v1",),
        headers: dict[str, str] | None = None,
        answers: bool = True,
    ) -> AsyncIterator[Self]:
        """Open a socket; leaving closes it."""
        lines = dict(headers or {})
        if token is not None:
            lines["Authorization"] = f"Bearer {token}"
        async with open_socket(
            url,
            subprotocols=None if subprotocols is None else [Subprotocol(name) for name in subprotocols],
            additional_headers=lines,
            compression=None,
            max_size=None,
            max_queue=None,
            ping_interval=None,
            close_timeout=2,
            proxy=None,
        ) as socket:
            peer = cls(socket, answers=answers)
            reading = asyncio.create_task(peer._read())
            try:
                yield peer
            finally:
                await socket.close()
                await reading

    async def _read(self) -> None:
        try:
            async for message in self.socket:
                one = json.loads(message) if isinstance(message, str) else _chunk(message)
                if self.answers and isinstance(one, dict) and one["type"] == "ping":
                    await self.say("pong", id=one["id"])
                    continue
                async with self._changed:
                    self.heard.append(one)
                    self._changed.notify_all()
        except ConnectionClosed:
            pass
        finally:
            async with self._changed:
                self._closed = True
                self._changed.notify_all()

    # -- saying ------------------------------------------------------------------------------------------------------

    async def say(self, type: str, **members: Any) -> None:
        """Send a control message."""
        await self.socket.send(json.dumps({"type": type, **members}))

    async def say_text(self, text: str) -> None:
        await self.socket.send(text)

    async def say_bytes(self, data: bytes) -> None:
        await self.socket.send(data)

    async def chunk(self, handle: int, seq: int, data: bytes, checksum: int | None = None) -> None:
        await self.socket.send(frame(handle, seq, data, checksum))

    async def hello(self, **members: Any) -> dict[str, Any]:
        """Say hello, with members that differ from the usual; return the welcome."""
        usual = {"client": new_id(), "max_message": 16_777_216, "receive": False}
        await self.say("hello", **usual | members)
        self.welcome = await self.hear("welcome")
        return self.welcome

    def next_handle(self) -> int:
        self._handle += 1
        return self._handle

    async def offer(self, **members: Any) -> tuple[int, str]:
        """Offer an upload, with members that differ from the usual; return its handle and transfer."""
        usual = {
            "transfer": new_id(),
            "handle": self.next_handle(),
            "name": "test.bin",
            "size": 10,
            "content_type": "application/octet-stream",
            "chunk_size": CHUNK,
            "sha256": None,
            "to": [],
            "meta": {},
        }
        message = usual | members
        self._handle = max(self._handle, message["handle"] if isinstance(message["handle"], int) else 0)
        await self.say("offer", **message)
        return message["handle"], message["transfer"]

    async def send_from(self, data: bytes, accept: dict[str, Any]) -> None:
        """Send all chunks from the accepted one on, minding the credit, then `finish`."""
        handle, size, seq, limit = accept["handle"], accept["chunk_size"], accept["seq"], accept["limit"]
        chunks = -(-len(data) // size)
        while seq < chunks:
            while seq >= limit:
                limit = (await self.hear("ack", handle=handle))["limit"]
            await self.chunk(handle, seq, data[seq * size : (seq + 1) * size])
            seq += 1
        await self.say("finish", handle=handle, chunks=chunks, size=len(data), sha256=sha256(data))

    async def upload(self, data: bytes, **members: Any) -> dict[str, Any]:
        """Do a whole upload, as an ordinary client does; return `done`."""
        handle, _ = await self.offer(**{"size": len(data)} | members)
        await self.send_from(data, await self.hear("accept", handle=handle))
        return await self.hear("done", handle=handle, seconds=30)

    # -- hearing -----------------------------------------------------------------------------------------------------

    async def hear(self, type: str, *, seconds: float = SECONDS, **members: Any) -> dict[str, Any]:
        """Return the first message of a type, with these members, that no `hear` has returned yet."""

        def fits(message: dict[str, Any] | Chunk) -> bool:
            return (
                isinstance(message, dict)
                and message.get("type") == type
                and all(name in message and message[name] == value for name, value in members.items())
            )

        message = await self._take(fits, f"{type} with {members}", seconds)
        assert isinstance(message, dict)
        return message

    async def hear_chunk(self, handle: int, *, seconds: float = SECONDS) -> Chunk:
        """Return the first chunk of a handle that was not returned yet."""
        message = await self._take(
            lambda message: isinstance(message, Chunk) and message.handle == handle, f"chunk of {handle}", seconds
        )
        assert isinstance(message, Chunk)
        return message

    async def hear_ack(self, handle: int, seq: int, *, seconds: float = SECONDS) -> dict[str, Any]:
        """Return the first ack that covers everything below `seq`; those before it are taken, too."""
        while (ack := await self.hear("ack", handle=handle, seconds=seconds))["seq"] < seq:
            pass
        return ack

    async def _take(
        self, fits: Callable[[dict[str, Any] | Chunk], bool], what: str, seconds: float
    ) -> dict[str, Any] | Chunk:
        try:
            async with asyncio.timeout(seconds), self._changed:
                while True:
                    for index, message in enumerate(self.heard):
                        if fits(message):
                            return self.heard.pop(index)
                    assert not self._closed, f"closed with {self._close()} before {what}; heard {self._summary()}"
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"no {what} within {seconds} s; heard {self._summary()}") from None

    def has_heard(self, type: str, **members: Any) -> bool:
        """Return whether such a message came that nobody has taken."""
        return any(
            isinstance(message, dict)
            and message["type"] == type
            and all(message.get(name) == value for name, value in members.items())
            for message in self.heard
        )

    def chunks_heard(self, handle: int) -> list[int]:
        """Return the numbers of the chunks of a handle that nobody has taken."""
        return [message.seq for message in self.heard if isinstance(message, Chunk) and message.handle == handle]

    async def settle(self) -> None:
        """Return when the server has read everything that was said so far."""
        number = uuid.uuid4().int % 2**50
        await self.say("ping", id=number)
        await self.hear("pong", id=number)

    async def closes(self, *, seconds: float = SECONDS) -> tuple[int, str]:
        """Wait for the server to close; return its code and reason."""
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(lambda: self._closed)
        return self._close()

    async def cut(self) -> None:
        """Lose the TCP connection without any frame."""
        self.socket.transport.abort()
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed)

    def _close(self) -> tuple[int, str]:
        return self.socket.close_code or 1006, self.socket.close_reason or ""

    def _summary(self) -> list[object]:
        return [
            f"chunk {message.handle}:{message.seq}" if isinstance(message, Chunk) else message for message in self.heard
        ]


def _chunk(message: bytes) -> Chunk:
    return Chunk(*struct.unpack_from(">III", message), message[12:])
