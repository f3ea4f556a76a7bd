"""A client's WebSocket, for many chunks: those that come go past the parser and the queue of `websockets`.

And what goes out does so in few writes, frames as they were made elsewhere. The handshake, pings, fragments, every
violation and the closing are `websockets`' own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.frames import DATA_OPCODES, Frame, Opcode
from websockets.protocol import OPEN, Event
from websockets.typing import BytesLike

from delivery.client.arriving import Arrivals, Buffers

END_OF_HANDSHAKE = b"\r\n\r\n"
Take = Callable[[str | BytesLike], None]


class LargeMessages(ClientConnection):
    """A client's connection. `buffers`: where large messages lie; who is done with one may give it back.

    `heard_at`: the monotonic time at which bytes last came, of whatever message.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.buffers = Buffers()
        self.heard_at = time.monotonic()
        self._take: Take | None = None
        self._failed: asyncio.Future[None] = self.loop.create_future()
        self._queued = False  # messages wait for `recv`: none may overtake them

    async def serve(self, take: Take) -> None:
        """Call `take` with each message, in order, on the loop, as soon as it came. Never returns.

        A view is valid until its buffer is given back. Raises `ConnectionClosed` as `recv` does, and what `take` raised.
        """
        self._take = take
        waiting = asyncio.ensure_future(self._take_from_queue(take))
        try:
            await asyncio.wait([waiting, self._failed], return_when=asyncio.FIRST_COMPLETED)
            (self._failed if self._failed.done() else waiting).result()
        finally:
            self._take = _drop
            waiting.cancel()
            await asyncio.wait([waiting])
            for ended in (waiting, self._failed):
                if ended.done() and not ended.cancelled():
                    ended.exception()  # not to be complained of: it is raised, or nobody waits for it

    async def _take_from_queue(self, take: Take) -> None:
        """Take what came before anybody did, and what is fragmented or no text at all."""
        while True:
            self._queued = bool(len(self.recv_messages.frames))
            take(await self.recv())

    async def send_all(self, messages: Sequence[str | bytes]) -> None:
        """Send texts and whole masked frames, in one write where the socket takes it. Raises as `send` does."""
        async with self.send_context():
            for message in messages:
                if isinstance(message, str):
                    self.protocol.send_text(message.encode())
                else:
                    self.protocol.writes.append(message)

    def data_received(self, data: bytes) -> None:
        greeting = self.response is None
        self.heard_at = time.monotonic()
        super().data_received(data)
        # What came along with the handshake is in the parser already: only at the end of a frame `Arrivals` may begin.
        if (
            greeting
            and self.protocol.state is OPEN
            and data.endswith(END_OF_HANDSHAKE)
            and not self.protocol.extensions
        ):
            self.transport.set_protocol(Arrivals(self))

    def eof_received(self) -> None:
        """End at once where the server takes nothing more; the close code that came before is parsed already.

        The transport would first wait until all that we still have to send has gone, which it never will.
        """
        super().eof_received()
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def large_received(self, message: memoryview) -> None:
        """Take a large message that came past the parser."""
        self.process_event(Frame(Opcode.BINARY, message))

    def process_event(self, event: Event) -> None:
        if self._take is None or not isinstance(event, Frame) or event.opcode not in DATA_OPCODES:
            super().process_event(event)
        elif (message := self._whole(event)) is None:
            self._queued = True
            super().process_event(event)
        else:
            self._hand(message, self._take)

    def _whole(self, frame: Frame) -> str | BytesLike | None:
        """Return the message that `frame` is, None where it has to go through the queue."""
        if self._queued or not frame.fin or frame.opcode is Opcode.CONT:
            return None
        if frame.opcode is Opcode.BINARY:
            return frame.data
        try:
            return str(frame.data, "utf-8")
        except UnicodeDecodeError:
            return None  # `recv` closes the connection as it should be

    def _hand(self, message: str | BytesLike, take: Take) -> None:
        try:
            take(message)
        except Exception as error:  # noqa: BLE001 - raised where `serve` is awaited
            self._take = _drop
            self._failed.set_exception(error)


def _drop(message: str | BytesLike) -> None:
    """Nobody takes messages any more: a close may still come behind them."""
