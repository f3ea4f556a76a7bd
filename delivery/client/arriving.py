"""Large messages on their way in, read by the kernel straight into the buffer in which they are checked and written.

Knows frames (RFC 6455 section 5.2) as far as it has to: where each one ends, and which is a whole large binary message.
All others, every violation and the closing are `websockets`' own, whose parser copies each byte four times.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from websockets.protocol import OPEN

if TYPE_CHECKING:
    from delivery.client.reading import LargeMessages

LARGE_BYTES = 16_384  # of a message; smaller ones are not worth it
SMALL_READ_BYTES = 16_384  # at most at a time, of what is no large message
FREE_BYTES = 8_388_608  # of buffers that are kept
FINAL_BINARY = 0x82
HEAD_BYTES = {126: 4, 127: 10}  # by what the second byte says, and 2 otherwise; of a server's frame, which has no mask
NEXT_HEAD_BYTES = 10  # a large message is read together with the head of what follows it


class Buffers:
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


class Arrivals(asyncio.BufferedProtocol):
    """Stands before `connection` at its transport, from the end of the handshake on."""

    def __init__(self, connection: LargeMessages) -> None:
        self._connection = connection
        self._small = memoryview(bytearray(SMALL_READ_BYTES))
        self._head = b""  # of a frame, not all of it here
        self._left = 0  # of the current frame, bytes that are still to come, where it is for `websockets`
        self._others: list[memoryview] = []  # for `websockets`
        self._message: memoryview | None = None  # large, on its way in; behind it there is room for the next head
        self._length = 0  # of that message
        self._filled = 0  # of its buffer

    # -- for the transport -----------------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._small if self._message is None else self._message[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._message is None:
            self._split(memoryview(self._head + self._small[:nbytes]))
            return
        self._filled += nbytes
        if self._filled >= self._length:
            rest = bytes(self._message[self._length : self._filled])
            self._complete(self._message[: self._length])
            self._split(memoryview(rest))

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def eof_received(self) -> None:
        self._connection.eof_received()

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    # -- frames ----------------------------------------------------------------------------------------------------

    def _split(self, view: memoryview) -> None:
        self._head = b""
        while view:
            if not self._left:
                length = self._begin(view)
                if length is None:
                    self._head = bytes(view)
                    break
                if length:
                    view = self._fill(view, length)
                    continue
            part, view = view[: self._left], view[self._left :]
            self._left -= len(part)
            self._others.append(part)
        self._hand_on()

    def _hand_on(self) -> None:
        """Give `websockets` what is not for us: several frames at once, which costs it little more than one."""
        if self._others:
            others, self._others = self._others, []
            self._connection.data_received(b"".join(others))

    def _begin(self, view: memoryview) -> int | None:
        """Look at the head of a frame; return the length of a large message, 0 for all others, None where it is cut."""
        size = HEAD_BYTES.get(view[1] & 0x7F, 2) if len(view) > 1 else 2
        if len(view) < size:
            return None
        length = view[1] & 0x7F if size == 2 else int.from_bytes(view[2:size], "big")
        if view[0] == FINAL_BINARY and length >= LARGE_BYTES and view[1] < 0x80:
            self._hand_on()  # what comes before it may change what we may take
            if self._takes(length):
                return length
        self._left = size + length
        return 0

    def _takes(self, length: int) -> bool:
        protocol = self._connection.protocol
        most = protocol.max_message_size
        within = most is None or length <= most
        return within and protocol.state is OPEN and protocol.current_size is None

    def _fill(self, view: memoryview, length: int) -> memoryview:
        """Begin a large message with what is here of it; return what follows it."""
        size = HEAD_BYTES[view[1]]
        part, rest = view[size : size + length], view[size + length :]
        self._message = self._connection.buffers.take(length + NEXT_HEAD_BYTES)
        self._message[: len(part)] = part
        self._length, self._filled = length, len(part)
        if len(part) == length:
            self._complete(self._message[:length])
        return rest

    def _complete(self, message: memoryview) -> None:
        self._message = None
        self._connection.large_received(message)
