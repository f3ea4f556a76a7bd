"""What belongs to uploads and deliveries on one connection: the core's events, turned into calls of feeds and intakes.

It holds no socket: `link` brings what comes and takes what is to be sent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from delivery.client.feed import Feed
from delivery.client.intake import Intake
from delivery.client.sinks import Saved
from delivery.client.uploads import Upload
from delivery.errors import DeliveryError, ProtocolViolation, Refused, TransferAborted
from delivery.protocol import events, messages
from delivery.protocol.codes import ABORT_CODES, REJECT_CODES
from delivery.protocol.connection import Connection, Limits, Side
from delivery.protocol.events import Event
from delivery.protocol.messages import DeliveryOffer
from delivery.protocol.receiver import Receiver
from delivery.protocol.sender import Sender

if TYPE_CHECKING:
    from delivery.client.host import Host

GOING_AWAY_SECONDS = 5.0  # longer than the server takes to close, at most 2 s
MAX_MESSAGE_BYTES = 16_777_216
EARLY_DATA_BYTES = 65_536


class Traffic:
    """The uploads and deliveries of `host` on one connection. `chunk_size`, `window`: bytes.

    `give_back`: takes the data of a chunk at which nobody looks any more.
    """

    def __init__(self, host: Host, *, chunk_size: int, window: int, give_back: Callable[[memoryview], None]) -> None:
        limits = Limits(max_message=MAX_MESSAGE_BYTES, chunk_size=chunk_size, early_data=EARLY_DATA_BYTES)
        self.core = Connection(Side.CLIENT, limits, now=time.monotonic())
        self._host = host
        self._window = window
        self._chunk_size = chunk_size
        self._give_back = give_back
        self._feeds: dict[int, Feed] = {}
        self._intakes: dict[int, Intake] = {}
        self._chunks_sent = False
        self._moved = False  # `seq` or `received` of any transfer
        self._wake = asyncio.Event()
        self._side_tasks: set[asyncio.Task[None]] = set()
        self._going_away: tuple[str, float | None, float] | None = None
        self._welcomed_at: float | None = None

    def wake(self) -> None:
        """Have a look at what is due to be sent."""
        self._wake.set()

    @property
    def max_message(self) -> int | None:
        """The largest message in bytes that the server said it takes."""
        return self.core.peer.max_message if self.core.peer else None

    @property
    def largest_chunk(self) -> int | None:
        """The largest chunk in bytes that either side sends, None before the server's `welcome`."""
        return min(self._chunk_size, self.core.peer.chunk_size) if self.core.peer else None

    def _stuck(self) -> bool:
        """Return whether chunks were sent or a delivery accepted, and nothing at all got through."""
        intakes = self._intakes.values()
        waiting = any(one.accepted and not one.receiver.held and one.receiver.live for one in intakes)
        return not self._moved and (self._chunks_sent or waiting)

    async def _detach(self) -> None:
        for feed in self._feeds.values():
            feed.close()
            if feed.upload.feed is feed:
                feed.upload.progress  # noqa: B018 - notes how far it is
                feed.upload.feed = None
        for intake in self._intakes.values():
            intake.close()
        if self._side_tasks:
            await asyncio.wait(self._side_tasks)

    def _on_event(self, event: Event) -> None:
        match event:
            case events.ChunkKept():
                self._on_chunk(event)
            case events.Acked():
                self._on_ack(event)
            case events.Offered():
                self._on_offer(event.receiver)
            case events.Finished():
                self._intakes[event.receiver.handle].poke()
            case events.Rewound():
                self._intakes[event.receiver.handle].rewound()
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
                    self._host.progressed(sender.longest_acked)
            case events.SenderAborted():
                self._on_sender_aborted(event.sender, event.message)

    def _on_welcome(self, welcome: messages.Welcome) -> None:
        self._welcomed_at = time.monotonic()
        self._host.welcomed(welcome)

    # -- deliveries ------------------------------------------------------------------------------------------------

    def _on_offer(self, receiver: Receiver) -> None:
        offer = receiver.offer
        if not isinstance(offer, DeliveryOffer):
            raise ProtocolViolation("offer without a payload")
        settled = self._host.settled.get(offer.transfer)
        if isinstance(settled, Saved):
            self.core.done(receiver, size=settled.size, sha256=settled.sha256)
        elif settled is not None:
            self.core.reject(receiver, "declined")
        else:
            incoming = self._host.incoming_for(offer)
            intake = Intake(
                incoming, receiver, self.core, window=self._window, wake=self.wake, give_back=self._give_back
            )
            self._intakes[receiver.handle] = intake
            if (going_on := incoming.attach(intake)) is not None:
                self._beside(going_on)

    def _on_chunk(self, event: events.ChunkKept) -> None:
        receiver, chunk = event.receiver, event.chunk
        intake = self._intakes[receiver.handle]
        self._moved = True
        self._host.note_received(intake.incoming, receiver.offset(chunk.seq), len(chunk.data))
        intake.keep(chunk.seq, chunk.data)

    def _on_receiver_aborted(self, receiver: Receiver, message: messages.Abort) -> None:
        intake = self._intakes.pop(receiver.handle, None)
        if intake is None:
            return
        intake.close()
        if message.final or message.code == "taken_over":
            text = message.message or ABORT_CODES[message.code].text if message.code in ABORT_CODES else message.message
            self._host.lost(intake.incoming, TransferAborted(message.code, text, final=message.final))

    def drop(self, intake: Intake, code: str, *, final: bool) -> None:
        """Stop receiving: `declined` where the offer is unanswered still, else an abort."""
        receiver = intake.receiver
        intake.close()
        if self._intakes.pop(receiver.handle, None) is None or not receiver.live:
            return
        if code == "declined" and not intake.accepted:
            self.core.reject(receiver, "declined")
        else:
            self.core.abort(receiver, "cancelled" if final else code, final=final)
        self._wake.set()

    # -- uploads ---------------------------------------------------------------------------------------------------

    def _offer_due(self) -> None:
        now = time.monotonic()
        for upload in self._host.uploads_due(now):
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
            upload.must_tell = upload.offered_before and not upload.must_tell
            upload.fail(error)
            return
        upload.offered_before = True
        if upload.must_tell:
            upload.must_tell = False
            self.core.abort(sender, "cancelled", final=True)
            return
        feed = Feed(upload, sender, pool=self._host.pool, wake=self.wake, abort=self._abort_feed)
        upload.feed = self._feeds[sender.handle] = feed
        feed.adjust()

    def _abort_feed(self, feed: Feed, code: str, *, final: bool) -> None:
        if self._feeds.pop(feed.sender.handle, None) is not None and feed.sender.live:
            self.core.abort(feed.sender, code, final=final)
            self._wake.set()

    def _on_accept(self, sender: Sender) -> None:
        if (feed := self._feeds.get(sender.handle)) is None:
            return
        upload = feed.upload
        feed.accepted()
        if upload.resumed_before or sender.acked:
            self._host.resumed(upload.transfer, sender.acked_bytes, "upload", reached=upload.highest_sent)
        upload.resumed_before = True
        upload.report(progressed=False)

    def _on_ack(self, event: events.Acked) -> None:
        self._moved = self._moved or event.sender.moved
        if event.progressed:
            self._host.progressed(event.sender.longest_acked)
        if (feed := self._feeds.get(event.sender.handle)) is not None:
            feed.acked()
            feed.upload.report(progressed=event.progressed)

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
        upload.postpone(retry_after)
        wait = max(0.0, upload.retry_at - time.monotonic())
        self._host.tell("waiting", transfer=upload.transfer, code=code, wait=round(wait, 3))
        asyncio.get_running_loop().call_later(wait + 0.001, self._wake.set)

    def _release(self, sender: Sender) -> Upload | None:
        """Take an upload off this connection; None where it was already."""
        feed = self._feeds.pop(sender.handle, None)
        if feed is None:
            return None
        feed.upload.progress  # noqa: B018 - notes how far it is
        feed.close()
        feed.upload.feed = None
        return feed.upload

    def _let_go_of_stalled(self, now: float) -> None:
        for sender in list(self.core.senders.values()):
            if sender.stalled(now) and (upload := self._release(sender)) is not None:
                self.core.abort(sender, "stalled", final=False)
                self._postpone(upload, "stalled", None)

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._side_tasks.add(task)
        task.add_done_callback(self._side_tasks.discard)
