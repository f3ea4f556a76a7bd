"""The server's frames past uvicorn's parser: large binary messages and short texts.

What it buys: the kernel writes a large message into one reused buffer, and unmasking makes the bytes that the application
gets. Without this module, uvicorn's parser takes every message, and copies each byte three or four times.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import Protocol

from delivery.websocket.frames import (
    FINAL_BINARY,
    FINAL_TEXT,
    MASK_BYTES,
    MASKED,
    data_bytes,
    head_bytes,
    unmasked,
)
from delivery.websocket.past_parser import LARGE_BYTES, ParsingProtocol, PastParser

MOST_BYTES = 4 * 1024 * 1024  # larger ones grow as they come: nobody has memory set aside by announcing them
FAIR_TEXTS = 8  # of one read, handed on without a queue that lets others have their turn
SCRATCH_BYTES = 65_536
MOST_SPARE = 8  # buffers of this process that wait for their next use


class ServerSocket(ParsingProtocol, Protocol):
    """What `ServerReader` asks of uvicorn's protocol behind it."""

    def bytes_received(self) -> None:
        """Note that bytes came, of whatever."""

    def large_received(self, data: bytes) -> None:
        """Take a whole binary message."""

    def text_received(self, data: bytes, *, straight: bool) -> None:
        """Take a whole text message, not yet known to be UTF-8. `straight`: it need not go through a queue."""

    def takes(self, length: int) -> bool:
        """Return whether a whole message of `length` bytes may come now."""


class FrameBuffers:
    """Buffers that one large frame after the other is read into. Belongs to one event loop."""

    def __init__(self) -> None:
        self.scratch = memoryview(bytearray(SCRATCH_BYTES))  # what is in it is taken out before anybody else reads
        self._spare: list[bytearray] = []

    def take(self, size: int) -> bytearray:
        """Return a buffer of at least `size` bytes, whatever is in it."""
        for number, buffer in enumerate(self._spare):
            if size <= len(buffer) <= 2 * size:
                return self._spare.pop(number)
        return bytearray(size)

    def give(self, buffer: bytearray) -> None:
        """Let others use a buffer."""
        self._spare.append(buffer)
        del self._spare[:-MOST_SPARE]


def buffers() -> FrameBuffers:
    """Return the running event loop's buffers."""
    return _by_loop.setdefault(asyncio.get_running_loop(), FrameBuffers())


_by_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, FrameBuffers] = weakref.WeakKeyDictionary()


class ServerReader(PastParser):
    """Takes whole messages for the `socket` behind it."""

    __slots__ = ("_at", "_buffer", "_buffers", "_end", "_size", "_socket", "_texts")
    MASK = MASK_BYTES

    def __init__(self, socket: ServerSocket, buffers: FrameBuffers) -> None:
        super().__init__(socket)
        self._socket = socket
        self._buffers = buffers
        self._buffer: bytearray | None = None  # of a large frame, or of what most likely is one
        self._at = 0  # where more goes into it
        self._end = 0  # of its frame; 0 while that is not known
        self._size = 0  # of the last large frame, with its head: the next is most likely as large
        self._texts = 0  # of this read

    # -- the transport's side ----------------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._buffer is None:
            if not self._size or self._left or self._head:
                return self._buffers.scratch
            self._buffer, self._at, self._end = self._buffers.take(self._size), 0, 0
        return memoryview(self._buffer)[self._at : self._end or self._size]

    def buffer_updated(self, nbytes: int) -> None:
        self._socket.bytes_received()
        self._texts = 0
        if self._buffer is None:
            self._split(self._buffers.scratch[:nbytes])
            return
        self._at += nbytes
        if not self._end and not self._expected(self._buffer):
            return
        if self._at == self._end:
            self._whole(self._buffer)

    @property
    def incomplete(self) -> bool:
        return super().incomplete or (self._buffer is not None and self._at > 0)

    # -- frames ------------------------------------------------------------------------------------------------------

    def _expected(self, buffer: bytearray) -> bool:
        """Look whether what began in the buffer is a frame like the last one; else take it out again."""
        view = memoryview(buffer)[: self._at]
        head = head_bytes(view, self.MASK)
        if self._at >= head and head + data_bytes(view) == self._size and self._is_large(view, self._size - head):
            self._end = self._size
            return True
        self._buffer, self._size = None, 0
        self._split(view)
        self._buffers.give(buffer)
        return False

    def _wants(self, view: memoryview, head: int, length: int) -> bool:
        return length >= LARGE_BYTES or self._is_text(view, head, length)

    def _take(self, view: memoryview, head: int, length: int) -> memoryview | None:
        if length >= LARGE_BYTES:
            return self._begin(view, head + length) if self._is_large(view, length) else None
        if not self._socket.takes(length):
            return None
        self._texts += 1
        data = unmasked(view[: head + length], head)
        self._socket.text_received(data, straight=self._texts <= FAIR_TEXTS)
        return view[head + length :]

    def _is_text(self, view: memoryview, head: int, length: int) -> bool:
        """Return whether it is a whole text, all of it here."""
        return view[0] == FINAL_TEXT and bool(view[1] & MASKED) and len(view) >= head + length

    def _is_large(self, view: memoryview, length: int) -> bool:
        masked = view[1] & MASKED  # else it is a violation
        fits = LARGE_BYTES <= length <= MOST_BYTES
        return bool(view[0] == FINAL_BINARY and masked and fits and self._socket.takes(length))

    def _begin(self, view: memoryview, size: int) -> memoryview:
        """Begin a large frame of `size` bytes with what is here of it; return what follows."""
        buffer = self._buffers.take(size)
        part = view[:size]
        buffer[: len(part)] = part
        self._buffer, self._at, self._end, self._size = buffer, len(part), size, size
        if self._at == size:
            self._whole(buffer)
        return view[size:]

    def _whole(self, buffer: bytearray) -> None:
        """Hand on the large message that is in the buffer."""
        view = memoryview(buffer)[: self._end]
        head = head_bytes(view, self.MASK)
        data = unmasked(view, head)
        self._buffer = None
        self._buffers.give(buffer)
        self._socket.large_received(data)
