"""Messages on their way in, taken past uvicorn's parser: large binary ones and short texts.

The parser copies each byte of a message three times, and takes 40 microseconds for a frame. Here the kernel writes a large
message into one buffer, and taking off its mask makes the bytes that the application gets.
Knows frames (RFC 6455 section 5.2) as far as it has to: where each one ends, and which is a whole message of these.
All others, the handshake, every violation and the closing are uvicorn's and `websockets`' own.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import Protocol

from websockets.frames import apply_mask  # type: ignore[attr-defined] # the C one, where there is one

LARGE_BYTES = 16_384  # of a binary message, smaller ones are not worth it; and more than a text has that is taken here
MOST_BYTES = 4 * 1024 * 1024  # larger ones grow as they come: nobody has memory set aside by announcing them
FAIR_TEXTS = 8  # of one read, handed on without a queue that lets others have their turn
FINAL_TEXT, FINAL_BINARY = 0x81, 0x82
MASKED = 0x80
MASK_BYTES = 4
HEAD_BYTES = {126: 4, 127: 10}  # by what the second byte says, and 2 otherwise; the mask comes behind
SCRATCH_BYTES = 65_536
MOST_SPARE = 8  # buffers of this process that wait for their next use


class Socket(Protocol):
    """What stands behind: uvicorn's protocol, guarded."""

    def data_received(self, data: bytes) -> None: ...

    def large_received(self, data: bytes) -> None:
        """Take a whole binary message."""

    def text_received(self, data: bytes, *, straight: bool) -> None:
        """Take a whole text message, not yet known to be UTF-8. `straight`: it need not go through a queue."""

    def takes(self, length: int) -> bool:
        """Return whether a whole message of `length` bytes may come now."""

    def connection_lost(self, exc: Exception | None) -> None: ...

    def eof_received(self) -> bool | None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


class Buffers:
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


def buffers() -> Buffers:
    """Return the running event loop's buffers."""
    return _by_loop.setdefault(asyncio.get_running_loop(), Buffers())


_by_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Buffers] = weakref.WeakKeyDictionary()


class WholeMessages(asyncio.BufferedProtocol):
    """Stands between a transport and the `socket` that it was made for."""

    __slots__ = ("_at", "_buffer", "_buffers", "_end", "_head", "_left", "_others", "_size", "_socket")

    def __init__(self, socket: Socket, buffers: Buffers) -> None:
        self._socket = socket
        self._buffers = buffers
        self._head = b""  # of a frame, not all of it here
        self._left = 0  # of a frame for `socket`, bytes that are still to come
        self._others: list[memoryview] = []  # for `socket`
        self._buffer: bytearray | None = None  # of a large frame, or of what most likely is one
        self._at = 0  # where more goes into it
        self._end = 0  # of its frame; 0 while that is not known
        self._size = 0  # of the last large frame, with its head: the next is most likely as large

    # -- the transport's side ----------------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._buffer is None:
            if not self._size or self._left or self._head:
                return self._buffers.scratch
            self._buffer, self._at, self._end = self._buffers.take(self._size), 0, 0
        return memoryview(self._buffer)[self._at : self._end or self._size]

    def buffer_updated(self, nbytes: int) -> None:
        if self._buffer is None:
            self._split(self._buffers.scratch[:nbytes])
            return
        self._at += nbytes
        if not self._end and not self._expected(self._buffer):
            return
        if self._at == self._end:
            self._whole(self._buffer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._socket.connection_lost(exc)

    def eof_received(self) -> bool | None:
        return self._socket.eof_received()

    def pause_writing(self) -> None:
        self._socket.pause_writing()

    def resume_writing(self) -> None:
        self._socket.resume_writing()

    # -- frames ------------------------------------------------------------------------------------------------------

    def _expected(self, buffer: bytearray) -> bool:
        """Look whether what began in the buffer is a frame like the last one; else take it out again."""
        view = memoryview(buffer)[: self._at]
        head = _head_bytes(view)
        if self._at >= head and head + _length(view) == self._size and self._is_large(view, self._size - head):
            self._end = self._size
            return True
        self._buffer, self._size = None, 0
        self._split(view)
        self._buffers.give(buffer)
        return False

    def _split(self, view: memoryview) -> None:
        if self._head:
            view, self._head = memoryview(self._head + view), b""
        texts = 0
        while view:
            if not self._left:
                head = _head_bytes(view)
                if len(view) < head:
                    self._head = bytes(view)
                    break
                length = _length(view)
                if length >= LARGE_BYTES:
                    self._hand_on()  # what comes before it may change what we may take
                    if self._is_large(view, length):
                        view = self._begin(view, head + length)
                        continue
                elif view[0] == FINAL_TEXT and view[1] & MASKED and len(view) >= head + length:
                    self._hand_on()
                    if self._socket.takes(length):
                        texts += 1
                        data = apply_mask(view[head : head + length], bytes(view[head - MASK_BYTES : head]))
                        self._socket.text_received(data, straight=texts <= FAIR_TEXTS)
                        view = view[head + length :]
                        continue
                self._left = head + length
            part, view = view[: self._left], view[self._left :]
            self._left -= len(part)
            self._others.append(part)
        self._hand_on()

    def _hand_on(self) -> None:
        """Give `socket` what is not for us: several frames at once, which costs it little more than one."""
        if self._others:
            data = b"".join(self._others)
            self._others.clear()
            self._socket.data_received(data)

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
        head = _head_bytes(view)
        data: bytes = apply_mask(view[head:], bytes(view[head - MASK_BYTES : head]))
        self._buffer = None
        self._buffers.give(buffer)
        self._socket.large_received(data)


def _head_bytes(view: memoryview) -> int:
    """Return how long the head of a frame is, mask and all, as far as what is here of it tells."""
    if len(view) < 2:
        return 2
    return HEAD_BYTES.get(view[1] & 0x7F, 2) + (MASK_BYTES if view[1] & MASKED else 0)


def _length(view: memoryview) -> int:
    """Return how long the data of the frame is whose head begins the view."""
    short = view[1] & 0x7F
    if short < 126:
        return short
    return int.from_bytes(view[2:4] if short == 126 else view[2:10], "big")
