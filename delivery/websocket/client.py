"""The client's WebSocket: the connection of `websockets`, without its parser and queue for large messages.

What it buys: the kernel reads each large message straight into the buffer in which it is checked and written, and many
frames that were made elsewhere go out in one write. Without it, `recv` and `send` of `websockets` do the same and cost
most of the client's time. The handshake, pings, fragments, every violation and the closing are `websockets`' own.
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

from delivery.websocket.frames import FINAL_BINARY, MASKED
from delivery.websocket.past_parser import LARGE_BYTES, PastParser, accepts_whole

END_OF_HANDSHAKE = b"\r\n\r\n"
SMALL_READ_BYTES = 16_384  # at most at a time, of what is no large message
FREE_BYTES = 8_388_608  # of buffers that are kept
NEXT_HEAD_BYTES = 10  # a large message is read together with the head of what follows it

Take = Callable[[str | BytesLike], None]


class MessageBuffers:
    """Buffers for large messages, which are used again: new memory costs a page fault every 4 KiB."""

    def __init__(self) -> None:
        self._free: list[bytearray] = []

    def take(self, length: int) -> memoryview:
        """Return room for `length` bytes, in a buffer that may be longer; what is in it is undefined."""
        while self._free:
            buffer = self._free.pop()
            if len(buffer) >= length:
                return memoryview(buffer)[:length]
        return memoryview(bytearray(length))

    def give_back(self, view: memoryview) -> None:
        """Take back the buffer below `view`, at which nobody looks any more. Who keeps one need not give it back."""
        buffer = view.obj
        view.release()
        if isinstance(buffer, bytearray) and (len(self._free) + 1) * len(buffer) <= FREE_BYTES:
            self._free.append(buffer)


class ClientSocket(ClientConnection):
    """The client's connection. `buffers`: where large messages lie; who is done with one may give it back.

    `heard_at`: the monotonic time at which bytes last came, of whatever message.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.buffers = MessageBuffers()
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
        # What came along with the handshake is in the parser already: only at the end of a frame `ClientReader` may begin.
        if (
            greeting
            and self.protocol.state is OPEN
            and data.endswith(END_OF_HANDSHAKE)
            and not self.protocol.extensions
        ):
            self.transport.set_protocol(ClientReader(self))

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


class ClientReader(PastParser):
    """Takes large messages for `connection`; a server's frames have no mask."""

    def __init__(self, connection: ClientSocket) -> None:
        super().__init__(connection)
        self._connection = connection
        self._small = memoryview(bytearray(SMALL_READ_BYTES))
        self._message: memoryview | None = None  # large, on its way in; behind it there is room for the next head
        self._length = 0  # of that message
        self._filled = 0  # of its buffer

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._small if self._message is None else self._message[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.heard_at = time.monotonic()
        if self._message is None:
            self._split(self._small[:nbytes])
            return
        self._filled += nbytes
        if self._filled >= self._length:
            rest = bytes(self._message[self._length : self._filled])
            self._complete(self._message[: self._length])
            self._split(memoryview(rest))

    def _wants(self, view: memoryview, head: int, length: int) -> bool:
        return view[0] == FINAL_BINARY and length >= LARGE_BYTES and view[1] < MASKED

    def _take(self, view: memoryview, head: int, length: int) -> memoryview | None:
        if not accepts_whole(self._connection.protocol, length):
            return None
        part, rest = view[head : head + length], view[head + length :]
        self._message = self._connection.buffers.take(length + NEXT_HEAD_BYTES)
        self._message[: len(part)] = part
        self._length, self._filled = length, len(part)
        if len(part) == length:
            self._complete(self._message[:length])
        return rest

    def _complete(self, message: memoryview) -> None:
        self._message = None
        self._connection.large_received(message)
