"""One WebSocket connection: it carries messages between the socket and the protocol core, and decides nothing.

Three tasks, all owned by `run`: one reads messages, one sends what is due in turns, one watches the clock. None of them
outlives the connection; uploads and deliveries do, and are handed to the next one by their `host`.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, cast

from websockets.exceptions import ConnectionClosed
from websockets.typing import BytesLike

from delivery.client.feed import Block, Feed
from delivery.client.traffic import Traffic
from delivery.errors import MessagesLost, ProtocolViolation
from delivery.protocol import events, messages
from delivery.protocol.backoff import Closed
from delivery.protocol.codes import GOING_AWAY_CODES
from delivery.protocol.messages import Hello
from delivery.protocol.sender import Sender
from delivery.websocket.client import ClientSocket

if TYPE_CHECKING:
    from delivery.client.host import Host

TICK_SECONDS = 0.25
CLOSE_SECONDS = 2.0
PARCEL_BYTES = 65_536  # of chunks that go out together; larger ones go alone


class Link(Traffic):
    """One connection of `host` over `socket`, whose handshake is done. `chunk_size`, `window`: bytes."""

    def __init__(self, host: Host, socket: ClientSocket, *, chunk_size: int, window: int) -> None:
        super().__init__(host, chunk_size=chunk_size, window=window, give_back=socket.buffers.give_back)
        self.reason = ""
        self._socket = socket
        self._asked_to_close = False

    async def run(self, hello: Hello) -> Closed:
        """Serve until the connection ends; return how it did. Raises `ProtocolViolation` where the server broke it."""
        self.core.hello(hello)
        self._wake.set()
        tasks = [asyncio.create_task(work) for work in (self._read(), self._send(), self._watch())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return self._ended(next(iter(done)))
        except MessagesLost as lost:
            self.reason = lost.reason
            await self._close_socket(lost.code, lost.reason)
            return self._closed(lost.code)
        except ProtocolViolation as violation:
            await self._close_socket(violation.code, violation.reason)
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():
                    task.exception()
            await self._detach()

    async def close(self) -> None:
        """Say what is left to say, and close with 1000."""
        self._asked_to_close = True
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._flush()
        except (TimeoutError, ConnectionClosed):
            pass
        await self._close_socket(1000, "")

    async def _close_socket(self, code: int, reason: str) -> None:
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._socket.close(code, reason)
        except TimeoutError:
            self._socket.transport.abort()

    # -- how it ended ----------------------------------------------------------------------------------------------

    def _ended(self, task: asyncio.Task[None]) -> Closed:
        error = task.exception()
        if error is None:
            code, self.reason = self._given_up()
        elif isinstance(error, ConnectionClosed):
            code, self.reason = _code_of(error)
        else:
            raise error
        return self._closed(code)

    def _given_up(self) -> tuple[int, str]:
        """Drop the connection; return the code that the server sent, although our answer may never have reached it."""
        close = self._socket.protocol.close_rcvd
        self._socket.transport.abort()
        return (close.code, close.reason) if close is not None else (1006, "")

    def _closed(self, code: int) -> Closed:
        if not self._asked_to_close:
            self._host.statistics.closes[code] += 1
        retry_after = None
        if self._going_away is not None:
            reason, retry_after, _ = self._going_away
            if code == 1006:  # it said why before the connection was lost
                code = GOING_AWAY_CODES.get(reason, 1001)
        alive = time.monotonic() - self._welcomed_at if self._welcomed_at is not None else 0.0
        return Closed(
            code,
            retry_after=retry_after,
            stuck=self._stuck(),
            welcomed_seconds=alive,
            chunk_size=self.largest_chunk,
        )

    # -- reading ---------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        await self._socket.serve(self._take)

    def _take(self, message: str | BytesLike) -> None:
        now = time.monotonic()
        if isinstance(message, str):
            happened = self.core.receive_text(message, now)
            self._wake.set()
        else:
            happened = self.core.receive_bytes(cast(bytes, message), now)
            if self.core.outbox:
                self._wake.set()
        for event in happened:
            self._on_event(event)

    # -- sending ---------------------------------------------------------------------------------------------------

    async def _send(self) -> None:
        while True:
            if self._wake.is_set() or self.core.outbox:
                self._wake.clear()
                if self.core.welcomed:
                    self._offer_due()
                self.core.queue_acks(time.monotonic())
            if parcel := self._parcel():
                await self._socket.send_all(parcel)
                self.core.sent(time.monotonic())
            elif not self._wake.is_set():
                await self._wake.wait()

    async def _flush(self) -> None:
        """Send all control messages that wait."""
        self.core.queue_acks(time.monotonic())
        while self.core.outbox:
            await self._socket.send_all(self._texts())
            self.core.sent(time.monotonic())

    def _texts(self) -> list[str]:
        outbox = self.core.outbox
        return [messages.encode(outbox.popleft()) for _ in range(len(outbox))]

    def _parcel(self) -> list[str | bytes]:
        """Return what goes out together: control messages, and chunks in their turns until they are enough.

        A small payload goes whole, with its offer and `finish`.
        """
        parcel: list[str | bytes] = [*self._texts()]
        size = 0
        while size < PARCEL_BYTES and (sender := self.core.next_turn()) is not None:
            block = self._turn(sender, self._feeds.get(sender.handle))
            if block is not None:
                parcel.append(block.frame)
                size += block.length
            parcel += self._texts()
        return parcel

    def _turn(self, sender: Sender, feed: Feed | None) -> Block | None:
        """Take a sender's turn; return the chunk that it sends."""
        if feed is None:
            self.core.abort(sender, "paused", final=False)
            return None
        block = feed.next_block()
        if block is not None:
            # Noted before it is sent: an ack may come while we still wait for the socket to drain.
            sender.chunk_sent(block.seq, time.monotonic())
            self._chunks_sent = True
            self._host.note_sent(feed.upload, block.seq * sender.chunk_size, block.length)
        elif sender.finish_due():
            if feed.digest is None:
                feed.want_digest()
            if feed.digest is not None:
                self.core.finish(sender, feed.digest)
        return block

    # -- time ------------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Return where the connection is as good as lost: nothing was heard for too long."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = time.monotonic()
            self.core.heard(self._socket.heard_at)
            if any(isinstance(event, events.PeerSilent) for event in self.core.tick(now)):
                return
            if self._going_away is not None and now >= self._going_away[2]:
                return
            self._let_go_of_stalled(now)
            for intake in self._intakes.values():
                at = intake.receiver.wake_at()
                if at is not None and now >= at:
                    intake.poke()
            self._wake.set()


def _code_of(error: ConnectionClosed) -> tuple[int, str]:
    """Return the close code and reason that the server sent, 1006 where it sent none."""
    if error.rcvd is None:
        return 1006, ""
    return error.rcvd.code, error.rcvd.reason
