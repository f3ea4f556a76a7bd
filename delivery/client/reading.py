"""Large messages on their way in: taken past the parser of `websockets`, which copies each of their bytes four times.

And small ones on their way out: several in one go. Knows frames (RFC 6455 section 5.2) as far as it has to: where each one ends, and which is a whole large binary message.
All others, the handshake, every violation and the closing are `websockets`' own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN

LARGE_BYTES = 16_384  # of a message; smaller ones are not worth it
FINAL_BINARY = 0x82
HEAD_BYTES = {126: 4, 127: 10}  # by what the second byte says, and 2 otherwise; of a server's frame, which has no mask


class LargeMessages(ClientConnection):
    """A client's connection that joins the pieces of a large message once, when the last has come."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._splitting: bool | None = None  # None until the handshake is done; False: all is left to `websockets`
        self._head = b""  # of a frame, not all of it here
        self._left = 0  # of the current frame, bytes that are still to come
        self._others: list[memoryview] = []  # for `websockets`
        self._pieces: list[memoryview] | None = None  # of the current frame, where that is a large message

    async def send_all(self, messages: Sequence[str | bytes]) -> None:
        """Send texts and whole masked frames, in one write where the socket takes it. Raises as `send` does."""
        async with self.send_context():
            for message in messages:
                if isinstance(message, str):
                    self.protocol.send_text(message.encode())
                else:
                    self.protocol.writes.append(message)

    def data_received(self, data: bytes) -> None:
        if self._splitting:
            self._split(memoryview(self._head + data if self._head else data))
            return
        super().data_received(data)
        if self._splitting is None and self.protocol.state is OPEN:
            # What came along with the handshake is in the parser already: only at the end of a frame we may begin.
            self._splitting = not self.protocol.reader.buffer and not self.protocol.extensions

    def _split(self, view: memoryview) -> None:
        self._head = b""
        while view:
            if not self._left:
                view, begun = self._begin(view)
                if not begun:
                    self._head = bytes(view)
                    break
            part, view = view[: self._left], view[self._left :]
            self._left -= len(part)
            if self._pieces is None:
                self._others.append(part)
            else:
                self._collect(part, self._pieces)
        self._hand_on()

    def _hand_on(self) -> None:
        """Give `websockets` what is not for us: several frames at once, which costs it little more than one."""
        if self._others:
            others, self._others = self._others, []
            super().data_received(b"".join(others))

    def _begin(self, view: memoryview) -> tuple[memoryview, bool]:
        """Look at the head of a frame; return what follows for us to take, and False where the head is not whole yet."""
        size = HEAD_BYTES.get(view[1] & 0x7F, 2) if len(view) > 1 else 2
        if len(view) < size:
            return view, False
        length = view[1] & 0x7F if size == 2 else int.from_bytes(view[2:size], "big")
        if view[0] == FINAL_BINARY and length >= LARGE_BYTES and view[1] < 0x80:
            self._hand_on()  # what comes before it may change what we may take
            if self._takes(length):
                self._pieces, self._left = [], length
                return view[size:], True
        self._pieces, self._left = None, size + length
        return view, True

    def _takes(self, length: int) -> bool:
        protocol = self.protocol
        most = protocol.max_message_size
        within = most is None or length <= most
        return within and protocol.state is OPEN and protocol.current_size is None

    def _collect(self, part: memoryview, pieces: list[memoryview]) -> None:
        pieces.append(part)
        if not self._left:
            self._pieces = None
            self.process_event(Frame(Opcode.BINARY, b"".join(pieces)))
