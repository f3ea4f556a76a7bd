"""The output of one connection: control messages first, then chunks in turns; the close last."""

from __future__ import annotations

import asyncio
import time

from delivery.protocol import messages
from delivery.protocol.connection import Connection
from delivery.server.download import Frame
from delivery.server.download_offers import ServerDownloads
from delivery.server.ports import Socket


class Writer:
    """The one task that writes to a socket. Belongs to the event loop of its connection."""

    def __init__(self, socket: Socket, core: Connection, downloads: ServerDownloads) -> None:
        self.closing: tuple[int, str] | None = None
        self._socket = socket
        self._core = core
        self._downloads = downloads
        self._woken = asyncio.Event()
        self._muted = False

    def wake(self) -> None:
        """There may be something to write."""
        self._woken.set()

    def close(self, code: int, reason: str) -> bool:
        """Send what is in the outbox, then close. Returns False where it closes already."""
        if self.closing is not None:
            return False
        self.closing = (code, reason)
        self.wake()
        return True

    def mute(self) -> None:
        """Say nothing more but the close."""
        self._muted = True
        self._core.outbox.clear()

    async def run(self) -> None:
        """Write until the connection is closed. Waits while the peer does not read. Raises `ConnectionClosed`."""
        while True:
            self._woken.clear()
            if not self._muted:
                if not self._core.going_away:  # the last acks come before it (PROTOCOL section 6)
                    self._core.queue_acks(time.monotonic())
                if self._core.outbox:
                    await self._send_outbox()
            if self.closing is not None:
                await self._socket.close(*self.closing)
                return
            if not await self._send_chunks():
                await self._woken.wait()

    async def _send_outbox(self) -> None:
        outbox = self._core.outbox
        while outbox and not self._muted:
            await self._socket.send_text(messages.encode(outbox.popleft()))
            self._core.sent(time.monotonic())

    async def _send_chunks(self) -> bool:
        """Send the chunks whose data is here, until one has to wait; return whether there may be more to send."""
        while (frame := self._next_frame()) is not None:
            if not self._socket.send_now(*frame):
                await self._socket.send_bytes(*frame)
                return True  # and what came meanwhile goes before the next chunk
        return bool(self._core.outbox)

    def _next_frame(self) -> Frame | None:
        """Return the next chunk whose data is here; None where there is none, or a `finish` was put into the outbox."""
        for _ in range(len(self._core.senders)):
            sender = self._core.next_turn()
            if sender is None:
                return None
            download = self._downloads.find(sender)
            if sender.finish_due():
                self._core.finish(sender, download.waiting.sha256)
                return None
            if (frame := download.frame()) is not None:
                now = time.monotonic()
                sender.chunk_sent(sender.next_seq, now)
                self._core.sent(now)
                return frame
        return None
