"""One WebSocket connection of a client: it carries messages between the socket and the protocol core, and decides nothing.

Three tasks, all owned by `run`: one reads messages, one sends in turns, one watches the clock. They end with the
connection; uploads and deliveries continue on the next one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, cast

from websockets.exceptions import ConnectionClosed
from websockets.typing import BytesLike

from delivery.client.dialing import MAX_MESSAGE_BYTES
from delivery.client.download import DownloadReceiver, Downloads, Incoming
from delivery.client.runtime import Runtime
from delivery.client.sinks import Saved
from delivery.client.upload import ReadyChunk, Upload, Uploads, UploadSender
from delivery.errors import DeliveryError, MessagesLost, ProtocolViolation, Refused, TransferAborted
from delivery.protocol import events, messages
from delivery.protocol.backoff import Closed
from delivery.protocol.codes import ABORT_CODES, GOING_AWAY_CODES, REJECT_CODES
from delivery.protocol.connection import Connection, Limits, Side
from delivery.protocol.events import Event
from delivery.protocol.messages import DeliveryOffer, Hello, Welcome
from delivery.protocol.receiver import Receiver
from delivery.protocol.sender import Sender
from delivery.websocket.client import ClientSocket

TICK_SECONDS = 0.25
CLOSE_SECONDS = 2.0
GOING_AWAY_SECONDS = 5.0  # longer than the server takes to close, at most 2 s
EARLY_DATA_BYTES = 65_536
PARCEL_BYTES = 65_536  # of chunks that go out together; larger ones go alone


class ClientConnection:
    """The uploads and deliveries of a client on `socket`, whose handshake is done.

    `chunk_size`, `window`: bytes. `welcomed`: called with the server's words about this connection.
    """

    def __init__(
        self,
        socket: ClientSocket,
        runtime: Runtime,
        uploads: Uploads,
        downloads: Downloads,
        *,
        chunk_size: int,
        window: int,
        welcomed: Callable[[Welcome], None],
    ) -> None:
        limits = Limits(max_message=MAX_MESSAGE_BYTES, chunk_size=chunk_size, early_data=EARLY_DATA_BYTES)
        self.core = Connection(Side.CLIENT, limits, now=time.monotonic())
        self.reason = ""
        self._socket = socket
        self._runtime = runtime
        self._uploads = uploads
        self._downloads = downloads
        self._window = window
        self._tell_welcomed = welcomed
        self._chunk_size = chunk_size
        self._senders: dict[int, UploadSender] = {}  # by handle
        self._receivers: dict[int, DownloadReceiver] = {}  # by handle
        self._chunks_sent = False
        self._moved = False  # `seq` or `received` of any transfer
        self._side_tasks: set[asyncio.Task[None]] = set()
        self._going_away: tuple[str, float | None, float] | None = None
        self._welcomed_at: float | None = None
        self._asked_to_close = False

    @property
    def max_message(self) -> int | None:
        """The largest message in bytes that the server said it takes."""
        return self.core.peer.max_message if self.core.peer else None

    @property
    def largest_chunk(self) -> int | None:
        """The largest chunk in bytes that either side sends, None before the server's `welcome`."""
        return min(self._chunk_size, self.core.peer.chunk_size) if self.core.peer else None

    async def run(self, hello: Hello) -> Closed:
        """Serve until the connection ends; return how it did. Raises `ProtocolViolation` where the server broke it."""
        self.core.hello(hello)
        self._runtime.wake()
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

    async def _detach(self) -> None:
        for sending in self._senders.values():
            sending.upload.let_go(sending)
        for receiving in self._receivers.values():
            receiving.close()
        self._senders.clear()  # a cancel that comes now belongs to the next connection
        self._receivers.clear()
        if self._side_tasks:
            await asyncio.wait(self._side_tasks)

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
        """Drop the connection; return the server's close code, even if our answer did not reach it."""
        close = self._socket.protocol.close_rcvd
        self._socket.transport.abort()
        return (close.code, close.reason) if close is not None else (1006, "")

    def _closed(self, code: int) -> Closed:
        if not self._asked_to_close:
            self._runtime.statistics.closes[code] += 1
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

    def _stuck(self) -> bool:
        """Return whether chunks were sent or a delivery accepted, and nothing at all got through."""
        receivers = self._receivers.values()
        waiting = any(one.accepted and not one.receiver.held and one.receiver.live for one in receivers)
        return not self._moved and (self._chunks_sent or waiting)

    # -- reading ---------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        await self._socket.serve(self._take)

    def _take(self, message: str | BytesLike) -> None:
        now = time.monotonic()
        if isinstance(message, str):
            happened = self.core.receive_text(message, now)
            self._runtime.wake()
        else:
            happened = self.core.receive_bytes(cast(bytes, message), now)
            if self.core.outbox:
                self._runtime.wake()
        for event in happened:
            self._on_event(event)

    # -- what the core says ----------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        match event:
            case events.ChunkKept():
                self._on_chunk(event)
            case events.Acked():
                self._on_ack(event)
            case events.Offered():
                self._on_offer(event.receiver)
            case events.Finished():
                self._receivers[event.receiver.handle].poke()
            case events.Rewound():
                self._receivers[event.receiver.handle].rewound()
            case events.ReceiverAborted():
                self._on_receiver_aborted(event.receiver, event.message)
            case events.Welcomed():
                self._on_welcome(event.welcome)
            case events.ServerGoingAway():
                until = time.monotonic() + GOING_AWAY_SECONDS
                self._going_away = (event.message.reason, event.message.retry_after, until)
            case _:
                self._on_answer(event)

    def _on_answer(self, event: Event) -> None:
        match event:
            case events.Accepted():
                self._on_accept(event.sender)
            case events.Rejected():
                self._on_reject(event.sender, event.message)
            case events.Completed():
                self._moved = True
                sender = event.sender
                if (upload := self._release(sender)) is not None:
                    compared = sender.sha256 is not None
                    upload.complete(sender.size or 0, event.sha256, event.payload, compared=compared)
                    self._runtime.progressed(sender.longest_acked)
            case events.SenderAborted():
                self._on_sender_aborted(event.sender, event.message)

    def _on_welcome(self, welcome: Welcome) -> None:
        self._welcomed_at = time.monotonic()
        self._tell_welcomed(welcome)

    # -- deliveries ------------------------------------------------------------------------------------------------

    def _on_offer(self, receiver: Receiver) -> None:
        offer = receiver.offer
        if not isinstance(offer, DeliveryOffer):
            raise ProtocolViolation("offer without a payload")
        settled = self._downloads.outcome(offer.transfer)
        if isinstance(settled, Saved):
            self.core.done(receiver, size=settled.size, sha256=settled.sha256)
        elif settled is not None:
            self.core.reject(receiver, "declined")
        else:
            self._receive(self._downloads.offered(offer), receiver)

    def _receive(self, incoming: Incoming, receiver: Receiver) -> None:
        receiving = DownloadReceiver(
            incoming,
            receiver,
            self.core,
            window=self._window,
            wake=self._runtime.wake,
            drop=self._drop,
            give_back=self._socket.buffers.give_back,
        )
        self._receivers[receiver.handle] = receiving
        if (going_on := incoming.attach(receiving)) is not None:
            self._beside(going_on)

    def _on_chunk(self, event: events.ChunkKept) -> None:
        receiver, chunk = event.receiver, event.chunk
        receiving = self._receivers[receiver.handle]
        self._moved = True
        receiving.incoming.received(receiver.offset(chunk.seq), len(chunk.data))
        receiving.keep(chunk.seq, chunk.data)

    def _on_receiver_aborted(self, receiver: Receiver, message: messages.Abort) -> None:
        receiving = self._receivers.pop(receiver.handle, None)
        if receiving is None:
            return
        receiving.close()
        if message.final or message.code == "taken_over":
            text = message.message or ABORT_CODES[message.code].text if message.code in ABORT_CODES else message.message
            self._downloads.lost(receiving.incoming, TransferAborted(message.code, text, final=message.final))

    def _drop(self, receiving: DownloadReceiver, code: str, final: bool) -> None:
        """Stop receiving: `declined` where the offer is unanswered still, else an abort."""
        receiver = receiving.receiver
        receiving.close()
        if self._receivers.pop(receiver.handle, None) is None or not receiver.live:
            return
        if code == "declined" and not receiving.accepted:
            self.core.reject(receiver, "declined")
        else:
            self.core.abort(receiver, "cancelled" if final else code, final=final)
        self._runtime.wake()

    # -- uploads ---------------------------------------------------------------------------------------------------

    def _offer_due(self) -> None:
        now = time.monotonic()
        for upload in self._uploads.due(now):
            if not self.core.can_offer():
                return
            self._offer(upload, now)

    def _offer(self, upload: Upload, now: float) -> None:
        try:
            offer = upload.offer()
            if offer.chunk_size > self._chunk_size:
                offer = replace(offer, chunk_size=self._chunk_size)
            sender = self.core.offer(offer, first=not upload.offered_before, now=now)
        except (DeliveryError, OSError) as error:  # of this source or offer: the others go on
            upload.fail_to_offer(error)
            return
        if upload.offered():
            self.core.abort(sender, "cancelled", final=True)
        else:
            self._senders[sender.handle] = upload.attach(sender, abort=self._abort)

    def _abort(self, sending: UploadSender, code: str, final: bool) -> None:
        sender = sending.sender
        if self._senders.pop(sender.handle, None) is not None and sender.live:
            self.core.abort(sender, code, final=final)
            self._runtime.wake()

    def _on_accept(self, sender: Sender) -> None:
        if (sending := self._senders.get(sender.handle)) is not None:
            sending.accepted()
            sending.upload.accepted(sender)

    def _on_ack(self, event: events.Acked) -> None:
        self._moved = self._moved or event.sender.moved
        if event.progressed:
            self._runtime.progressed(event.sender.longest_acked)
        if (sending := self._senders.get(event.sender.handle)) is not None:
            sending.acked()
            sending.upload.report(progressed=event.progressed)

    def _on_reject(self, sender: Sender, message: messages.Reject) -> None:
        if (upload := self._release(sender)) is None:
            return
        verdict = REJECT_CODES.get(message.code)
        if verdict is not None and verdict.retryable:
            self._postpone(upload, message.code, message.retry_after)
        else:
            text = message.message or (verdict.text if verdict else message.code)
            if message.max_size is not None:
                text = f"{text} (the server takes at most {message.max_size:,} bytes)"
            upload.fail(Refused(message.code, text, max_size=message.max_size))

    def _on_sender_aborted(self, sender: Sender, message: messages.Abort) -> None:
        if (upload := self._release(sender)) is None:
            return
        if message.final or message.code == "taken_over":
            text = message.message or (ABORT_CODES[message.code].text if message.code in ABORT_CODES else "")
            upload.fail(TransferAborted(message.code, text, final=message.final))
        else:
            self._postpone(upload, message.code, message.retry_after)

    def _postpone(self, upload: Upload, code: str, retry_after: float | None) -> None:
        wait = upload.postpone(retry_after)
        self._runtime.tell("waiting", transfer=upload.transfer, code=code, wait=round(wait, 3))
        asyncio.get_running_loop().call_later(wait + 0.001, self._runtime.wake)

    def _release(self, sender: Sender) -> Upload | None:
        """Take an upload off this connection; None where it was already."""
        sending = self._senders.pop(sender.handle, None)
        if sending is None:
            return None
        sending.upload.let_go(sending)
        return sending.upload

    def _let_go_of_stalled(self, now: float) -> None:
        for sender in list(self.core.senders.values()):
            if sender.stalled(now) and (upload := self._release(sender)) is not None:
                self.core.abort(sender, "stalled", final=False)
                self._postpone(upload, "stalled", None)

    # -- sending ---------------------------------------------------------------------------------------------------

    async def _send(self) -> None:
        while True:
            if self._runtime.work.is_set() or self.core.outbox:
                self._runtime.work.clear()
                if self.core.welcomed:
                    self._offer_due()
                self.core.queue_acks(time.monotonic())
            if parcel := self._parcel():
                await self._socket.send_all(parcel)
                self.core.sent(time.monotonic())
            elif not self._runtime.work.is_set():
                await self._runtime.work.wait()

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
            chunk = self._turn(sender, self._senders.get(sender.handle))
            if chunk is not None:
                parcel.append(chunk.frame)
                size += chunk.length
            parcel += self._texts()
        return parcel

    def _turn(self, sender: Sender, sending: UploadSender | None) -> ReadyChunk | None:
        """Take a sender's turn; return the chunk that it sends."""
        if sending is None:
            self.core.abort(sender, "paused", final=False)
            return None
        chunk = sending.next_chunk()
        if chunk is not None:
            # Noted before it is sent: an ack may come while we still wait for the socket to drain.
            sender.chunk_sent(chunk.seq, time.monotonic())
            self._chunks_sent = True
            sending.upload.sent(chunk.seq * sender.chunk_size, chunk.length)
        elif sender.finish_due():
            if sending.digest is None:
                sending.want_digest()
            if sending.digest is not None:
                self.core.finish(sender, sending.digest)
        return chunk

    # -- time ------------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Return when the server has been silent for too long, so that the connection counts as lost."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = time.monotonic()
            self.core.heard(self._socket.heard_at)
            if any(isinstance(event, events.PeerSilent) for event in self.core.tick(now)):
                return
            if self._going_away is not None and now >= self._going_away[2]:
                return
            self._let_go_of_stalled(now)
            for receiving in self._receivers.values():
                at = receiving.receiver.wake_at()
                if at is not None and now >= at:
                    receiving.poke()
            self._runtime.wake()

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._side_tasks.add(task)
        task.add_done_callback(self._side_tasks.discard)


def _code_of(error: ConnectionClosed) -> tuple[int, str]:
    """Return the close code and reason that the server sent, 1006 where it sent none."""
    if error.rcvd is None:
        return 1006, ""
    return error.rcvd.code, error.rcvd.reason
