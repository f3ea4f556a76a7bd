"""Whole frames, taken past the parser of `websockets`: which frames, and where each of them ends.

What it buys: the parser copies each byte three or four times and takes 40 microseconds for a frame. Without this module,
every message goes through the parser, and all else works the same. Every other frame, every violation and the closing
stay the parser's.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from websockets.protocol import OPEN
from websockets.protocol import Protocol as Parser

from delivery.websocket.frames import data_bytes, head_bytes

LARGE_BYTES = 16_384  # of a binary message; smaller ones are not worth it


def accepts_whole(parser: Parser, length: int) -> bool:
    """Return whether a whole message of `length` bytes may come now; else leave it to the parser."""
    within = parser.max_message_size is None or length <= parser.max_message_size
    return within and parser.state is OPEN and parser.current_size is None and not parser.extensions


class ParsingProtocol(Protocol):
    """The protocol that a transport was made for, with a parser of its own."""

    def data_received(self, data: bytes) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...

    def eof_received(self) -> bool | None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


class PastParser(asyncio.BufferedProtocol):
    """Stands between a transport and the protocol it was made for, from the end of the handshake on.

    A subclass says which frames it wants, and takes those. `MASK`: bytes of the mask that the peer's frames have.
    """

    __slots__ = ("_behind", "_head", "_left", "_others")
    MASK = 0

    def __init__(self, behind: ParsingProtocol) -> None:
        self._behind = behind
        self._head = b""  # of a frame, not all of it here
        self._left = 0  # of a frame for the parser, bytes that are still to come
        self._others: list[memoryview] = []  # for the parser

    @property
    def incomplete(self) -> bool:
        """Whether a part of a frame is here, and the rest of it is not."""
        return bool(self._head or self._left)

    def connection_lost(self, exc: Exception | None) -> None:
        self._behind.connection_lost(exc)

    def eof_received(self) -> bool | None:
        return self._behind.eof_received()

    def pause_writing(self) -> None:
        self._behind.pause_writing()

    def resume_writing(self) -> None:
        self._behind.resume_writing()

    def _wants(self, view: memoryview, head: int, length: int) -> bool:
        """Return whether the frame that begins the view, of `head` and `length` bytes, is a message for us by its head."""
        raise NotImplementedError

    def _take(self, view: memoryview, head: int, length: int) -> memoryview | None:
        """Take what is here of such a frame, and return what follows it; None where it is not to be taken now."""
        raise NotImplementedError

    def _split(self, view: memoryview) -> None:
        """Take what is for us, and hand on all else, in order. Whatever the view shows may change afterwards."""
        if self._head:
            view, self._head = memoryview(self._head + view), b""
        while view:
            if not self._left:
                head = head_bytes(view, self.MASK)
                if len(view) < head:
                    self._head = bytes(view)
                    break
                length = data_bytes(view)
                if self._wants(view, head, length):
                    self._hand_on()  # what comes before it may change what we may take
                    if (behind := self._take(view, head, length)) is not None:
                        view = behind
                        continue
                self._left = head + length
            part, view = view[: self._left], view[self._left :]
            self._left -= len(part)
            self._others.append(part)
        self._hand_on()

    def _hand_on(self) -> None:
        """Give the parser what is not for us: several frames at once, which costs it little more than one."""
        if self._others:
            others, self._others = self._others, []
            self._behind.data_received(b"".join(others))
