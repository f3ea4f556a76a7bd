"""The network of a simulation: messages in order with delays, connections that are cut or stuck."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from websockets.exceptions import ConnectionClosedError
from websockets.frames import Close

from delivery.websocket.client import MessageBuffers
from tests.client.unframing import unframed

LOST = object()
QUEUED = 6  # messages that fit on the way before the sender of them has to wait


class Lane:
    """One direction of a connection. `deliver` is called at the other end; `stuck`: nothing arrives, for now.

    `passes`: says of each message whether it arrives; one that does not is swallowed without a word.
    """

    def __init__(
        self,
        chance: random.Random,
        delay: Callable[[], float],
        passes: Callable[[Any], bool],
        deliver: Callable[[Any], None],
    ) -> None:
        self.stuck = False
        self._passes = passes
        self.closed = False
        self._chance = chance
        self._delay = delay
        self._deliver = deliver
        self._waiting: deque[Any] = deque()
        self._moving = False
        self._room = asyncio.Event()
        self._room.set()

    async def send(self, message: Any) -> None:
        await self._room.wait()
        self.put(message)

    def put(self, message: Any) -> None:
        self._waiting.append(message)
        if len(self._waiting) >= QUEUED:
            self._room.clear()
        self._go()

    def flow(self) -> None:
        self.stuck = False
        self._go()

    def _go(self) -> None:
        if not self._moving and self._waiting and not self.stuck:
            self._moving = True
            # The network belongs to nobody: it goes on when the process that sent is dead.
            asyncio.get_running_loop().call_later(self._delay(), self._arrive, context=EMPTY)

    def _arrive(self) -> None:
        self._moving = False
        if self.stuck or not self._waiting:
            return
        message = self._waiting.popleft()
        if len(self._waiting) < QUEUED:
            self._room.set()
        if not self.closed and self._passes(message):
            self._deliver(message)
        self._go()

    def end(self) -> None:
        self.closed = True
        self._room.set()


EMPTY: Any = None


class Wire:
    """One connection: the client's end is used by `delivery.client.connection`, the server's by the consumer."""

    def __init__(self, chance: random.Random, delay: Callable[[], float], passes: Callable[[Any], bool]) -> None:
        self.client = ClientEnd(self)
        self.to_server: asyncio.Queue[Any] = asyncio.Queue()
        self.gone = False
        self.up = Lane(chance, delay, passes, self.to_server.put_nowait)
        self.down = Lane(chance, delay, passes, self.client.arrive)

    def cut(self, *, server_notices: bool = True) -> None:
        """Lose the connection. Where only the client notices, the server's end goes on with what arrives late."""
        self.client.lose()
        self.down.end()
        if server_notices:
            self.gone = True
            self.up.end()
            self.to_server.put_nowait(LOST)


class ClientEnd:
    """What `ClientConnection` needs of a websockets connection."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._came: asyncio.Queue[Any] = asyncio.Queue()
        self._lost: ConnectionClosedError | None = None
        self.protocol = SimpleNamespace(close_rcvd=None)
        self.transport = SimpleNamespace(abort=lambda: wire.cut())
        self.subprotocol = "delivery.v1"
        self.buffers = MessageBuffers()
        self.heard_at = 0.0

    def arrive(self, message: Any) -> None:
        self._came.put_nowait(message)

    def lose(self) -> None:
        if self._lost is None:
            self._lost = ConnectionClosedError(self.protocol.close_rcvd, None)
            self._came.put_nowait(self._lost)

    async def serve(self, take: Callable[[Any], None]) -> None:
        while True:
            take(await self._recv())

    async def _recv(self) -> Any:
        message = await self._came.get()
        if isinstance(message, ConnectionClosedError):
            self._came.put_nowait(message)
            raise message
        if isinstance(message, Close):
            self.protocol.close_rcvd = message
            self._wire.cut()
            return await self._recv()
        return message

    async def send_all(self, messages: Sequence[str | bytes]) -> None:
        for message in messages:
            if self._lost is not None:
                raise self._lost
            await self._wire.up.send(message if isinstance(message, str) else bytes(unframed(message).data))
            if self._lost is not None:
                raise self._lost

    async def close(self, code: int = 1000, reason: str = "") -> None:
        self._wire.cut()
