"""What goes out on one connection: control messages first, then chunks in turns; at last the close."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from delivery.protocol import messages
from delivery.protocol.connection import Connection
from delivery.server.download import Frame, Outflow


class ConnectionClosed(Exception):
    """The socket takes nothing more: its peer is gone."""


class Socket(Protocol):
    """What a connection's drivers need of its consumer. Sending raises `ConnectionClosed` once the peer is gone."""

    channel_name: str

    async def send_text(self, text: str) -> None: ...

    def send_now(self, *pieces: bytes | bytearray | memoryview) -> bool:
        """Send one binary message if that takes no waiting; else return False, and send nothing."""

    async def send_bytes(self, *pieces: bytes | bytearray | memoryview) -> None:
        """Send one binary message, whose pieces nobody changes any more."""

    async def close(self, code: int, reason: str) -> None: ...

    async def join(self, group: str) -> None: ...

    def abandon(self) -> None: ...

    def limit_messages(self, size: int) -> None:
        """Take messages of at most `size` bytes from now on, where the server lets that be chosen."""

    def incomplete_at(self) -> float:
        """Return the monotonic time at which bytes of an incomplete message came last.

        0.0 where none is under way, or where the server does not say.
        """


class Writer:
    """The one task that writes to a socket. Belongs to the event loop of its connection."""

    def __init__(self, socket: Socket, connection: Connection, outflows: dict[int, Outflow]) -> None:
        self.closing: tuple[int, str] | None = None
        self._socket = socket
        self._connection = connection
        self._outflows = outflows
        self._woken = asyncio.Event()
        self._muted = False

    def wake(self) -> None:
        """There may be something to write."""
        self._woken.set()

    def close(self, code: int, reason: str, *, going_away: messages.GoingAway | None = None) -> bool:
        """Send what is in the outbox, then close; `going_away` is said before. Returns False where it closes already."""
        if self.closing is not None:
            return False
        if going_away is not None:
            self._connection.outbox.append(going_away)
            self._connection.going_away = True
        self.closing = (code, reason)
        self.wake()
        return True

    def mute(self) -> None:
        """Say nothing more but the close."""
        self._muted = True
        self._connection.outbox.clear()

    async def run(self) -> None:
        """Write until the connection is closed. Waits while the peer does not read. Raises `ConnectionClosed`."""
        while True:
            self._woken.clear()
            if not self._muted:
                if not self._connection.going_away:  # the last acks come before it (PROTOCOL section 6)
                    self._connection.queue_acks(time.monotonic())
                if self._connection.outbox:
                    await self._send_outbox()
            if self.closing is not None:
                await self._socket.close(*self.closing)
                return
            if not await self._send_chunks():
                await self._woken.wait()

    async def _send_outbox(self) -> None:
        outbox = self._connection.outbox
        while outbox and not self._muted:
            await self._socket.send_text(messages.encode(outbox.popleft()))
            self._connection.sent(time.monotonic())

    async def _send_chunks(self) -> bool:
        """Send the chunks whose data is here, until one has to wait; return whether there may be more to send."""
        while (frame := self._next_frame()) is not None:
            if not self._socket.send_now(*frame):
                await self._socket.send_bytes(*frame)
                return True  # and what came meanwhile goes before the next chunk
        return bool(self._connection.outbox)

    def _next_frame(self) -> Frame | None:
        """Return the next chunk whose data is here; None where there is none, or a `finish` was put into the outbox."""
        for _ in range(len(self._connection.senders)):
            sender = self._connection.next_turn()
            if sender is None:
                return None
            outflow = self._outflows[sender.handle]
            if sender.finish_due():
                self._connection.finish(sender, outflow.waiting.sha256)
                return None
            if (frame := outflow.frame()) is not None:
                now = time.monotonic()
                sender.chunk_sent(sender.next_seq, now)
                self._connection.sent(now)
                return frame
        return None
