"""How large a message may be, connection by connection, on a real server; and that the close of one too large arrives."""

from __future__ import annotations

import asyncio
import contextlib
import json
import zlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from delivery.websocket import extensions
from delivery.websocket import uvicorn as guards
from tests.hostile.wire import BINARY, CONT, PING, TEXT, Wire, frame
from tests.launch.test_guards import serving

SERVER_LIMIT = 2**20  # of `serving`


class Application:
    """Accepts a socket, with the limits that it is given before and after, and answers with the length of each message."""

    def __init__(self, *limits: int) -> None:
        self.limits = limits
        self.got: list[int] = []
        self.accepts = asyncio.Event()
        self.accepts.set()
        self.closed: dict[str, Any] = {}

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        limit = scope["extensions"][extensions.LIMIT]["set"]
        await receive()
        if self.limits:
            limit(self.limits[0])
        await self.accepts.wait()
        await send({"type": "websocket.accept", "subprotocol": "delivery.v1"})
        for size in self.limits[1:]:
            await self._answer(await receive(), send)
            limit(size)
        while (message := await receive())["type"] == "websocket.receive":
            await self._answer(message, send)
        self.closed = message

    async def _answer(self, message: dict[str, Any], send: Any) -> None:
        self.got.append(len(message.get("bytes") or message.get("text")))
        with contextlib.suppress(RuntimeError):  # it is closed by what came behind
            await send({"type": "websocket.send", "text": json.dumps({"type": "length", "length": self.got[-1]})})


@contextlib.asynccontextmanager
async def wire_to(application: Application) -> AsyncIterator[Wire]:
    async with serving(application) as port, Wire.open(port) as wire:
        yield wire


@pytest.mark.parametrize("opcode", [BINARY, TEXT])
@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize(("limits", "most"), [((), SERVER_LIMIT), ((65_536,), 65_536), ((70_000,), 70_000)])
async def test_a_message_of_the_limit_passes_and_a_larger_one_closes_1009(
    limits: Sequence[int], most: int, pieces: int, opcode: int
) -> None:
    application = Application(*limits)
    async with wire_to(application) as wire:
        for size in (most, most + 1):
            step = -(-size // pieces)
            cuts = [min(step, size - at) for at in range(0, size, step)]
            for number, cut in enumerate(cuts):
                await wire.send(frame(CONT if number else opcode, b"x" * cut, fin=number == len(cuts) - 1))
        assert await wire.closes() == (1009, "message too big")
        assert application.got == [most]
    assert application.closed == {"type": "websocket.disconnect", "code": 1009, "reason": "message too big"}


async def test_the_limit_is_raised_for_the_next_message() -> None:
    application = Application(65_536, 200_000)
    async with wire_to(application) as wire:
        for size in (65_536, 200_000):
            await wire.send(frame(BINARY, bytes(size)))
            await wire.hear("length", length=size)
        await wire.send(frame(BINARY, bytes(200_001)))
        assert (await wire.closes())[0] == 1009


async def test_the_close_is_not_lost_on_a_peer_that_goes_on_sending() -> None:
    """What comes after it is read and dropped: a reset would take the close along."""
    async with serving(Application(65_536)) as port:
        for _ in range(20):
            async with Wire.open(port, reads=False) as wire:
                wire.writer.write(frame(BINARY, bytes(8_000_000)))
                first, _ = await asyncio.wait_for(wire.reader.readexactly(2), 10)
                assert first & 0x0F == 8
                assert int.from_bytes((await wire.reader.readexactly(2)), "big") == 1009
                assert await asyncio.wait_for(wire.reader.read(), 10) == b"message too big"  # and the end of TCP


async def test_little_is_kept_of_what_comes_before_the_socket_is_accepted() -> None:
    application = Application(65_536)
    application.accepts.clear()
    async with serving(application) as port, Wire.bare(port) as wire:
        handshake = asyncio.create_task(wire.handshake())
        await asyncio.sleep(0.05)
        await wire.send(frame(TEXT, b"x") * 20_000)
        await asyncio.sleep(0.2)
        application.accepts.set()
        assert await handshake == 101
        wire.read()
        await wire.send(frame(PING))
        while not wire.pongs:
            await asyncio.sleep(0.01)
    assert len(application.got) < 1_000  # a few of each read


async def test_fragments_are_few_while_the_limit_is_low() -> None:
    async with wire_to(Application(65_536)) as wire:
        await wire.send(frame(TEXT, b"x", fin=False) + frame(CONT, b"", fin=False) * (guards.FIRST_FRAGMENTS + 1))
        assert await wire.closes() == (1008, "too many fragments")


async def test_a_compressed_frame_is_no_frame() -> None:
    """A few of its bytes would be megabytes: the extension is never agreed upon."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(bytes(60_000_000)) + packer.flush(zlib.Z_SYNC_FLUSH)
    async with serving(Application(65_536)) as port:
        headers = {"Sec-WebSocket-Extensions": "permessage-deflate"}
        async with Wire.open(port, headers=headers) as wire:
            await wire.send(frame(TEXT, packed[:-4], rsv=4))
            assert (await wire.closes())[0] == 1002
