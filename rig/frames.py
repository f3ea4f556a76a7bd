"""Where WebSocket frames begin and end in one direction of a connection, from their headers alone (RFC 6455 section 5.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

END_OF_HANDSHAKE = b"\r\n\r\n"


@dataclass(frozen=True)
class Part:
    """A piece of a block. `length`: of the frame's payload (bytes), with the piece that completes its header.

    `ends`: the frame ends with this piece. `handshake`: it is HTTP and not of a frame.
    """

    data: bytes
    length: int | None = None
    ends: bool = False
    handshake: bool = False
    header: bool = False


class Frames:
    """Splits what passes in one direction: fed with every block since the connection began."""

    def __init__(self) -> None:
        self._upgraded = False
        self._head = bytearray()  # the end of the handshake, then of a header that has not come whole
        self._left = 0  # bytes of the frame that is passing

    def split(self, block: bytes) -> Iterator[Part]:
        """Give the block in pieces, in order; nothing is kept back. A frame's header comes apart from its payload."""
        at = 0
        while at < len(block):
            part = self._next(block, at)
            at += len(part.data)
            yield part

    def _next(self, block: bytes, at: int) -> Part:
        if not self._upgraded:
            return self._handshake(block)
        if self._left:
            data = block[at : at + self._left]
            self._left -= len(data)
            return Part(data, ends=not self._left)
        return self._header(block, at)

    def _handshake(self, block: bytes) -> Part:
        known = len(self._head)
        self._head += block
        end = self._head.find(END_OF_HANDSHAKE)
        if end < 0:
            del self._head[: -len(END_OF_HANDSHAKE) + 1]
            return Part(block, handshake=True)
        self._upgraded = True
        self._head.clear()
        return Part(block[: end + len(END_OF_HANDSHAKE) - known], handshake=True)

    def _header(self, block: bytes, at: int) -> Part:
        for end in range(at + 1, len(block) + 1):
            self._head.append(block[end - 1])
            if (length := payload_length(self._head)) is not None:
                self._head.clear()
                self._left = length
                return Part(block[at:end], length, ends=not length, header=True)
        return Part(block[at:], header=True)


def payload_length(head: bytes | bytearray) -> int | None:
    """Return the length (bytes) of the payload behind a header, None where the header has not come whole."""
    if len(head) < 2:
        return None
    short = head[1] & 0x7F
    extra = {126: 2, 127: 8}.get(short, 0)
    mask = 4 if head[1] & 0x80 else 0
    if len(head) < 2 + extra + mask:
        return None
    return int.from_bytes(head[2 : 2 + extra]) if extra else short


class Limit:
    """Takes out the frames of more than `most` bytes. Keeps a header back until it has come whole."""

    def __init__(self, most: int) -> None:
        self.over = 0
        """How many frames were too large."""
        self.most = most
        self._held = b""
        self._passes = True

    def passed(self, part: Part) -> bytes:
        """Take the next part; return what passes now."""
        if part.handshake:
            return part.data
        if part.header:
            self._held += part.data
            if part.length is None:
                return b""
            self._passes = part.length <= self.most
            self.over += not self._passes
            head, self._held = self._held, b""
            return head if self._passes else b""
        return part.data if self._passes else b""
