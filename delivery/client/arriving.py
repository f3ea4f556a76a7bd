"""Large messages on their way in, read by the kernel straight into the buffer in which they are checked and written."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from delivery.websocket import FINAL_BINARY, LARGE_BYTES, MASKED, PastParser, takes

if TYPE_CHECKING:
    from delivery.client.reading import LargeMessages

SMALL_READ_BYTES = 16_384  # at most at a time, of what is no large message
FREE_BYTES = 8_388_608  # of buffers that are kept
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


class Arrivals(PastParser):
    """Takes them for `connection`; a server's frames have no mask."""

    def __init__(self, connection: LargeMessages) -> None:
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
        if not takes(self._connection.protocol, length):
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
