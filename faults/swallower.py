"""What a proxy does that silently drops large WebSocket messages.

It reads frame headers on their way (RFC 6455 section 5.2), never their content.
"""

from __future__ import annotations


class Swallower:
    """Passes one direction on, but for messages of more than `most` bytes, of which it says nothing to anybody."""

    def __init__(self, most: int) -> None:
        self.swallowed = 0
        self._most = most
        self._buffer = b""
        self._upgraded = False
        self._left = 0  # of the frame that is passing
        self._passes = True

    def passed(self, data: bytes) -> bytes:
        """Take what came; return what goes on."""
        self._buffer += data
        out = b""
        while (piece := self._next()) is not None:
            out += piece
        return out

    def _next(self) -> bytes | None:
        if not self._upgraded:
            return self._handshake()
        if not self._left and not self._begin():
            return None
        if not self._buffer:
            return None
        piece, self._buffer = self._buffer[: self._left], self._buffer[self._left :]
        self._left -= len(piece)
        return piece if self._passes else b""

    def _handshake(self) -> bytes | None:
        end = self._buffer.find(b"\r\n\r\n") + 4
        if end < 4:
            return None
        head, self._buffer, self._upgraded = self._buffer[:end], self._buffer[end:], True
        return head

    def _begin(self) -> bool:
        """Look at the next frame's header; return whether it is all here."""
        head = self._buffer[:14]
        if len(head) < 2:
            return False
        short = head[1] & 0x7F
        extra = {126: 2, 127: 8}.get(short, 0)
        if len(head) < 2 + extra:
            return False
        length = int.from_bytes(head[2 : 2 + extra], "big") if extra else short
        self._passes = length <= self._most
        self.swallowed += not self._passes
        self._left = 2 + extra + (4 if head[1] & 0x80 else 0) + length
        return True
