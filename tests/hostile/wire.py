"""A WebSocket made by hand on a TCP socket: it can say what no library would.

Shares no code with `delivery` nor with any WebSocket library. What the server says is parsed strictly.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import struct
from collections.abc import AsyncIterator
from typing import Any, Self

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
SECONDS = 10.0


def frame(opcode: int, data: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """Return one frame. `rsv`: the three reserved bits, 1..7. The mask is zero: it masks, and costs nothing."""
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    mask_bit = 0x80 if masked else 0
    length = len(data)
    if length < 126:
        head = struct.pack(">BB", first, mask_bit | length)
    elif length < 65_536:
        head = struct.pack(">BBH", first, mask_bit | 126, length)
    else:
        head = struct.pack(">BBQ", first, mask_bit | 127, length)
    return head + (bytes(4) if masked else b"") + data


def said(type: str, **members: Any) -> bytes:
    """Return a control message as a frame."""
    return frame(TEXT, json.dumps({"type": type, **members}).encode())


class Wire:
    """One TCP connection. What the server says is kept in `heard`, in order, by a task that may be left out."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.heard: list[dict[str, Any] | bytes] = []
        self.pongs = 0
        self.close: tuple[int, str] | None = None  # None while open; 1006 where TCP ended without a frame
        self.answers = True
        self._changed = asyncio.Condition()
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def tcp(cls, port: int) -> Self:
        """Open TCP alone."""
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=2**22))

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, port: int, token: str | None = None, *, reads: bool = True, headers: dict[str, str] | None = None
    ) -> AsyncIterator[Self]:
        """Open a WebSocket. `reads`: take in what the server says; without, only its handshake is read."""
        wire = await cls.tcp(port)
        try:
            status = await wire.handshake(token, headers=headers)
            assert status == 101, status
            if reads:
                wire.read()
            yield wire
        finally:
            await wire.end()

    async def handshake(self, token: str | None = None, *, headers: dict[str, str] | None = None) -> int:
        """Ask for the upgrade; return the HTTP status."""
        lines = {
            "Host": "{}:{}".format(*self.writer.get_extra_info("peername")[:2]),
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Protocol": "delivery.v1",
        }
        if token is not None:
            lines["Authorization"] = f"Bearer {token}"
        lines |= headers or {}
        text = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
        self.writer.write(f"GET /ws/delivery/ HTTP/1.1\r\n{text}\r\n".encode("latin-1"))
        answer = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), SECONDS)
        return int(answer.split(b" ", 2)[1])

    async def end(self) -> None:
        """Cut the connection."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        self.writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    @classmethod
    @contextlib.asynccontextmanager
    async def bare(cls, port: int) -> AsyncIterator[Self]:
        """Open TCP alone, and cut it at the end."""
        wire = await cls.tcp(port)
        try:
            yield wire
        finally:
            await wire.end()

    # -- saying ------------------------------------------------------------------------------------------------------

    async def send(self, data: bytes) -> bool:
        """Put bytes on the wire, however little sense they make. Returns False once the server has ended TCP."""
        if self.writer.transport.is_closing() or self.close is not None:
            return False
        self.writer.write(data)
        try:
            await self.writer.drain()
        except ConnectionError:
            return False
        await asyncio.sleep(0)  # let what is heard be taken in
        return True

    async def say(self, type: str, **members: Any) -> None:
        await self.send(said(type, **members))

    async def hello(self, **members: Any) -> dict[str, Any]:
        usual = {"client": os.urandom(8).hex(), "max_message": 16_777_216, "receive": False}
        await self.say("hello", **usual | members)
        return await self.hear("welcome")

    # -- hearing -----------------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Begin to take in what the server says."""
        self._reading = asyncio.create_task(self._read())

    async def stop_reading(self) -> None:
        """Take in nothing more: TCP's window closes."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._reading = None
            self.close = None

    async def _read(self) -> None:
        try:
            while self.close is None:
                await self._read_frame()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            async with self._changed:
                self.close = self.close or (1006, "")
                self._changed.notify_all()

    async def _read_frame(self) -> None:
        first, second = await self.reader.readexactly(2)
        assert first & 0x70 == 0, "reserved bits of the server's"
        assert second & 0x80 == 0, "a masked frame of the server's"
        assert first & 0x80, "the server fragments"
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack(">H", await self.reader.readexactly(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", await self.reader.readexactly(8))
        await self._take(first & 0x0F, await self.reader.readexactly(length))

    async def _take(self, opcode: int, data: bytes) -> None:
        if opcode == PING:
            await self.send(frame(PONG, data))
            return
        if opcode == CLOSE:
            self.close = (struct.unpack(">H", data[:2])[0], data[2:].decode()) if data else (1005, "")
            await self.send(frame(CLOSE, data))
            return
        async with self._changed:
            if opcode == PONG:
                self.pongs += 1
            else:
                assert opcode in (TEXT, BINARY), opcode
                await self._keep(json.loads(data) if opcode == TEXT else data)
            self._changed.notify_all()

    async def _keep(self, message: dict[str, Any] | bytes) -> None:
        if self.answers and isinstance(message, dict) and message["type"] == "ping":
            await self.say("pong", id=message["id"])
        else:
            self.heard.append(message)

    async def hear(self, type: str, *, seconds: float = SECONDS, **members: Any) -> dict[str, Any]:
        """Return the first message of a type, with these members, that no `hear` has returned yet."""
        return await self._first((type,), members, seconds)

    async def answer(self, handle: int, *, seconds: float = SECONDS) -> dict[str, Any]:
        """Return the answer to an offer, or what comes next of that kind: accept, reject, done."""
        return await self._first(("accept", "reject", "done"), {"handle": handle}, seconds)

    async def _first(self, types: tuple[str, ...], members: dict[str, Any], seconds: float) -> dict[str, Any]:
        async with asyncio.timeout(seconds), self._changed:
            while True:
                for index, message in enumerate(self.heard):
                    if isinstance(message, dict) and message["type"] in types and members.items() <= message.items():
                        return self.heard.pop(index)  # type: ignore[return-value]
                assert self.close is None, f"closed with {self.close} before {types}; heard {self.heard}"
                await self._changed.wait()

    async def closes(self, *, seconds: float = SECONDS) -> tuple[int, str]:
        """Wait for the server to close; return its code and reason."""
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(lambda: self.close is not None)
        assert self.close is not None
        return self.close

    async def settle(self, *, seconds: float = SECONDS) -> None:
        """Return when the server has read everything that was said so far."""
        number = int.from_bytes(os.urandom(6), "big")
        await self.say("ping", id=number)
        await self.hear("pong", id=number, seconds=seconds)
