"""The uploads of one connection: answers offers, runs receivers, reports the ends.

Early data (a small upload that comes whole with its offer) is stored in batches (PROTOCOL section 2). When an upload ends for
good, its bytes are removed from the buffer at once, before their TTL ends. Otherwise a client that offers, sends and aborts
again and again would fill Redis, since credit counts only live uploads.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any
from uuid import UUID
from weakref import WeakValueDictionary

from delivery import conf, dispatch, notify, policy
from delivery.buffer import chunks
from delivery.errors import BufferUnavailable, Refused, TransferAborted
from delivery.protocol import messages
from delivery.protocol.frames import Chunk
from delivery.protocol.messages import UploadOffer
from delivery.protocol.receiver import ChunkRange, Receiver, Terms
from delivery.protocol.states import State
from delivery.server.inline_upload import InlineUploadReceiver
from delivery.server.ports import ConnectionPart, ConnectionPort
from delivery.server.upload import Reports, UploadReceiver
from delivery.server.web_process import WebProcess
from delivery.transfers import outcomes, uploads
from delivery.transfers.holders import Holder
from delivery.transfers.inline import SmallOffer
from delivery.transfers.segments import StoreRequest
from delivery.transfers.uploads import DetachedUpload, Earlier, FinishedUpload, Opened

logger = logging.getLogger(__name__)

AnyUpload = UploadReceiver | InlineUploadReceiver

SETTLE_SECONDS = 5.0
SETTLE_LOOK_SECONDS = 0.5
BUSY_RETRY_AFTER = 2.0
EARLY_SECONDS = 0.01  # that early data waits for its `finish`
EARLY_TURNS = 3


class ServerUploads(ConnectionPart):
    """The uploads that are live on one connection. Belongs to its event loop."""

    def __init__(self, connection: ConnectionPort, process: WebProcess) -> None:
        super().__init__(connection)
        self._process = process
        self._live: dict[int, AnyUpload] = {}  # by handle
        self._early: dict[int, Chunk] = {}  # chunks that came before the answer to their offer
        self._expecting: dict[int, asyncio.Event] = {}  # the `finish` of early data
        self._answering: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()  # by transfer

    # -- what comes --------------------------------------------------------------------------------------------------

    def keep(self, receiver: Receiver, chunk: Chunk) -> None:
        """Keep a chunk; one that came early waits on its receiver for the answer to the offer."""
        upload = self._live.get(receiver.handle)
        if upload is not None:
            upload.keep(chunk)
        else:
            self._early[receiver.handle] = chunk

    def finished(self, receiver: Receiver) -> None:
        """The sender has said `finish`."""
        if (upload := self._live.get(receiver.handle)) is not None:
            upload.wake()
        self._wake_expecting(receiver)

    def aborted(self, receiver: Receiver, message: messages.Abort) -> None:
        """The sender ended it, for good or on this connection; or we did, with the third nack of one chunk."""
        self._wake_expecting(receiver)
        self._connection.spawn(self._end_aborted(receiver, message), "abort")

    def _wake_expecting(self, receiver: Receiver) -> None:
        if (expected := self._expecting.get(receiver.handle)) is not None:
            expected.set()

    # -- what others ask ---------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._live)

    def unflushed(self) -> int:
        """Return how many bytes that came are in this process's memory alone."""
        return sum(upload.unflushed for upload in self._live.values())

    async def below(self, limit: int) -> None:
        """Wait until each has less than `limit` bytes in this process's memory alone."""
        for upload in list(self._live.values()):
            await upload.below(limit)

    def moved_since(self, worker: str, since: float) -> bool:
        """Return whether `worker` moved one of them after `since` (monotonic seconds)."""
        return any(upload.worker == worker and upload.worker_at >= since for upload in self._live.values())

    def hurry(self) -> None:
        """Have all that was taken in stored now: the connection is about to be closed."""
        for upload in self._live.values():
            upload.hurry()

    @property
    def settled(self) -> bool:
        """Whether all that was taken in is stored."""
        return all(upload.settled for upload in self._live.values())

    def holds_any(self) -> bool:
        """Return whether one of them has been given no credit."""
        return any(upload.receiver.held for upload in self._live.values())

    async def release_held(self) -> None:
        """Give credit to uploads that resumed while no worker lived, as soon as one does."""
        waits = self._process.credit.waits
        receivers = [upload.receiver for upload in self._live.values()]
        held = [receiver for receiver in receivers if receiver.held and not waits(receiver)]
        if held and await self._process.workers.alive():
            for receiver in held:
                receiver.release()
            self._connection.wake()

    def taken_over(self, transfer: UUID, lease: int) -> None:
        """A newer connection holds a transfer under `lease`."""
        for upload in self._of(transfer):
            if upload.lease < lease:
                self._drop(upload, "taken_over", final=False)

    def ended(self, transfer: UUID, code: str) -> None:
        """A transfer was ended elsewhere: cancelled in the admin, expired by the sweep."""
        for upload in self._of(transfer):
            self._drop(upload, code, final=True)

    def _of(self, transfer: UUID) -> list[AnyUpload]:
        return [upload for upload in self._live.values() if upload.opened.transfer == transfer]

    # -- answering offers --------------------------------------------------------------------------------------------

    async def answer(self, receiver: Receiver) -> None:
        """Answer an offer, and take the upload in. Offers of one transfer are answered in the order in which they came."""
        async with self._lock_of(receiver):
            await self._answer(receiver)

    def _lock_of(self, receiver: Receiver) -> asyncio.Lock:
        """Return the lock of whoever answers or lets go of a transfer on this connection: one after the other."""
        return self._answering.setdefault(UUID(receiver.transfer), asyncio.Lock())

    async def _answer(self, receiver: Receiver) -> None:
        connection = self._connection
        try:
            opened = await self._open(receiver)
        except TransferAborted:
            return  # the login no longer holds: the connection is closing
        except Refused as refused:
            self._early.pop(receiver.handle, None)
            if receiver.live:
                connection.core.reject(
                    receiver,
                    refused.code,
                    refused.message,
                    max_size=refused.max_size,
                    retry_after=refused.retry_after,
                )
            connection.wake()
            return
        if not receiver.live:  # aborted by its sender meanwhile
            await self._abandoned(receiver, opened)
        elif isinstance(opened, FinishedUpload):
            self._answer_complete(receiver, opened)
        else:
            await self._accept(receiver, opened)

    def _answer_complete(self, receiver: Receiver, finished: FinishedUpload) -> None:
        """Answer an offer of what is complete already; by its own early data, it is accepted first."""
        connection = self._connection
        self._early.pop(receiver.handle, None)
        if receiver.expected_digests() - {finished.sha256}:  # an early `finish` that contradicts what is stored
            connection.core.reject(receiver, "mismatch")
            connection.wake()
            return
        if finished.fresh:
            connection.core.accept(receiver, stored=0, terms=_terms(), now=time.monotonic())
            receiver.on_stored(receiver.received)
        self._done(receiver, finished)

    async def _open(self, receiver: Receiver) -> Opened | FinishedUpload:
        connection, process, offer = self._connection, self._process, receiver.offer
        if not isinstance(offer, UploadOffer):
            raise Refused("unsupported")
        if process.draining or connection.deaf:
            raise Refused("draining")
        wait = process.offers.count(connection.user.pk, connection.quota.offers_per_minute)
        if wait is not None:
            raise Refused("rate", f"at most {connection.quota.offers_per_minute} offers a minute", retry_after=wait)
        await connection.confirm()
        if self._may_come_early(receiver) and (finished := await self._store_early(receiver, offer)) is not None:
            return finished
        if len(self._live) >= conf.current().max_live_transfers:
            raise Refused("busy", "too many live transfers on this connection", retry_after=BUSY_RETRY_AFTER)
        return await self._open_row(offer)

    async def _open_row(self, offer: UploadOffer) -> Opened | FinishedUpload:
        connection, process = self._connection, self._process
        earlier = await connection.db(uploads.find, connection.user.pk, connection.require_holder(), offer)
        if earlier is None and process.buffer_full and not _is_inline(offer):
            raise Refused("busy", "the buffer is full", retry_after=BUSY_RETRY_AFTER)
        admitted = await process.admit(connection.user, offer)  # before anybody is disturbed
        workers = bool(await process.workers.alive())
        if earlier is not None and workers:
            await self._settle(earlier)
        holder = connection.require_holder()
        return await connection.change(uploads.open_upload, connection.user, holder, offer, admitted, workers=workers)

    async def _accept(self, receiver: Receiver, opened: Opened) -> None:
        connection, credit = self._connection, self._process.credit
        for other in self._of(opened.transfer):  # offered again on the same connection
            self._drop(other, "taken_over", final=False)
        receiver.size = opened.size if receiver.size is None else receiver.size
        waits = not opened.inline and not credit.fits(receiver, opened.stored, connection.user.pk)
        connection.core.accept(
            receiver,
            stored=opened.stored,
            terms=replace(_terms(), window=credit.window(), max_size=opened.max_size),
            now=time.monotonic(),
            expires=_iso(opened.expires),
            hold=opened.hold or waits,
        )
        first = self._early.pop(receiver.handle, None)
        if receiver.live:
            if not opened.inline:
                credit.join(receiver, connection.wake, connection.user.pk, waits=waits)
            self._begin(receiver, opened, first)
        connection.wake()
        if opened.displaced:
            await notify.atell_channel(opened.displaced, "taken_over", transfer=opened.transfer.hex, lease=opened.lease)

    def _begin(self, receiver: Receiver, opened: Opened, first: Chunk | None) -> None:
        """Take an accepted upload in. `first`: the chunk that came before its offer was answered."""
        connection = self._connection
        reports = Reports(
            changed=connection.wake,
            rewind=self._rewind,
            confirm=connection.confirm,
            moved_by=connection.moved_by,
        )
        kind = InlineUploadReceiver if opened.inline else UploadReceiver
        upload = self._live[receiver.handle] = kind(self._process, receiver, opened, reports)
        if first is not None and receiver.received > receiver.stored:
            upload.keep(first)
        upload.task = connection.spawn(self._take_in(upload), "upload")
        connection.reset_timer()

    async def _abandoned(self, receiver: Receiver, opened: Opened | FinishedUpload) -> None:
        """The sender ended the upload, for good or on this connection, while we were answering its offer."""
        self._early.pop(receiver.handle, None)
        if not isinstance(opened, Opened):
            return
        if receiver.state is State.ABORTED:
            connection = self._connection
            cancelling = connection.db(outcomes.cancel_payload, opened.payload, by=policy.address_of(connection.user))
            await self._process.see_through(cancelling)
        else:
            await self._note_detached(self._connection.require_holder(), opened, opened.lease, None)

    # -- early data --------------------------------------------------------------------------------------------------

    def _may_come_early(self, receiver: Receiver) -> bool:
        """Return whether the offer's only chunk and `finish` may follow it at once (PROTOCOL section 2, early data)."""
        limits, offer = self._connection.core.limits, receiver.offer
        return offer.size is not None and 0 < offer.size <= min(limits.early_data, offer.chunk_size, limits.chunk_size)

    async def _store_early(self, receiver: Receiver, offer: UploadOffer) -> FinishedUpload | None:
        """Store a small upload that came whole with its offer, together with others; None where it goes the long way."""
        await self._until_finish(receiver)
        chunk = self._early.get(receiver.handle)
        if receiver.finish is None or chunk is None or not receiver.live:
            return None
        connection = self._connection
        expected = frozenset(receiver.expected_digests())
        try:
            admitted = await self._process.admit_small(connection.user, offer)
        except Refused:  # it may be complete already: the long way knows
            return None
        one = SmallOffer(connection.user, connection.require_holder(), offer, bytes(chunk.data), expected, admitted)
        return await self._process.small.put(one)

    async def _until_finish(self, receiver: Receiver) -> None:
        """Wait for the `finish` of early data: if its sender sent it, it is being read just now."""
        if receiver.finish is None and receiver.live:
            self._expecting[receiver.handle] = came = asyncio.Event()
            try:
                async with asyncio.timeout(EARLY_SECONDS):
                    await came.wait()
            except TimeoutError:
                pass
            finally:
                del self._expecting[receiver.handle]
        for _ in range(EARLY_TURNS):  # turns and not seconds: a busy loop reads later
            if receiver.finish is None and receiver.live:
                await asyncio.sleep(0)

    # -- taking in, and ends -----------------------------------------------------------------------------------------

    async def _take_in(self, upload: AnyUpload) -> None:
        try:
            finished = await upload.run()
        except TransferAborted as aborted:
            if aborted.code in ("digest", "too_large"):
                await self._connection.db(outcomes.fail, upload.opened.payload, aborted.code)
            final = aborted.final and aborted.code not in ("storage_unavailable", "busy")
            self._drop(upload, aborted.code, final=final, message=aborted.message)
            return
        finally:
            self._process.credit.leave(upload.receiver)
        if self._live.pop(upload.receiver.handle, None) is not None:
            self._done(upload.receiver, finished)

    def _done(self, receiver: Receiver, finished: FinishedUpload) -> None:
        connection = self._connection
        if receiver.live:
            connection.core.done(receiver, size=finished.size, sha256=finished.sha256, payload=str(finished.payload))
        connection.wake()

    def _rewind(self, receiver: Receiver, seq: int) -> None:
        connection = self._connection
        connection.core.queue_acks(time.monotonic())
        connection.act(connection.core.rewind(receiver, seq, "lost"))
        connection.wake()

    def _drop(self, upload: AnyUpload, code: str, *, final: bool, message: str = "") -> None:
        """Tell the peer that an upload ends here; what was taken in is stored where it is to go on elsewhere."""
        if self._let_go(upload.receiver) is None:
            return
        connection = self._connection
        if upload.receiver.live:
            connection.core.queue_acks(time.monotonic())
            connection.core.abort(upload.receiver, code, message, final=final)
        work = _until(self._process.see_through(_discard(upload))) if final else self._detach(upload)
        connection.spawn(work, "detach")
        connection.wake()

    def _let_go(self, receiver: Receiver) -> AnyUpload | None:
        """Take an upload from its connection and end its run; return it, None where that was done already."""
        upload = self._live.pop(receiver.handle, None)
        # Here too: a task that is cancelled before its first step never gets to it.
        self._process.credit.leave(receiver)
        if upload is not None and upload.task is not None and upload.task is not asyncio.current_task():
            upload.task.cancel()
        return upload

    async def _end_aborted(self, receiver: Receiver, message: messages.Abort) -> None:
        upload = self._let_go(receiver)
        if upload is None:
            return
        if message.final and message.code == "too_large":  # it was we who found that
            await self._connection.db(outcomes.fail, upload.opened.payload, message.code)
        elif message.final:
            await self._process.see_through(self._cancel(upload))
        else:
            await self._detach(upload)

    async def _cancel(self, upload: AnyUpload) -> None:
        """Cancel an upload as its sender asks, whether or not their connection lasts that long."""
        connection = self._connection
        await connection.db(outcomes.cancel_payload, upload.opened.payload, by=policy.address_of(connection.user))
        await _discard(upload)

    # -- detaching ---------------------------------------------------------------------------------------------------

    def detach_all(self) -> list[Coroutine[Any, Any, None]]:
        """Return the work of letting go of each, to be done by itself: the connection is gone."""
        uploads = list(self._live.values())
        for upload in uploads:
            self._let_go(upload.receiver)
        return [self._detach(upload) for upload in uploads]

    async def _detach(self, upload: AnyUpload) -> None:
        """Store what was taken in, and note that nobody holds the upload. An offer of it waits for that."""
        connection = self._connection  # this may outlast all else that holds it
        async with self._lock_of(upload.receiver):
            if upload.task is not None:
                await asyncio.wait([upload.task])  # two may not flush at once
            try:
                await upload.detach()
            finally:  # whatever becomes of what was taken in
                holder = connection.require_holder()
                await self._note_detached(holder, upload.opened, upload.lease, connection.close_code)

    async def _note_detached(self, holder: Holder, opened: Opened, lease: int, close_code: int | None) -> None:
        await self._process.detached.put(DetachedUpload(opened.transfer, holder.session, lease, close_code))

    # -- what an earlier lease left ----------------------------------------------------------------------------------

    async def _settle(self, earlier: Earlier) -> None:
        """Have what an earlier lease left in the buffer stored, so that it is not sent again; wait at most 5 s for it."""
        try:
            chunk_size, end = await chunks.abuffered(earlier.payload, earlier.lease)
            if end <= earlier.stored:
                return
            if earlier.channel:
                # Its consumer, should it live, takes nothing more in under that lease.
                await notify.atell_channel(
                    earlier.channel, "taken_over", transfer=earlier.transfer.hex, lease=earlier.lease + 1
                )
            async with asyncio.timeout(SETTLE_SECONDS):
                await self._until_stored(earlier, chunk_size, end)
        except TimeoutError:
            logger.info("upload %s resumes before all that was buffered is stored", earlier.payload)
        except BufferUnavailable as error:
            logger.warning("%s", error)

    async def _until_stored(self, earlier: Earlier, chunk_size: int, end: int) -> None:
        """Ask for what is buffered, and again, until it is stored: whoever asked before may be gone."""
        subscriber, woken = self._process.subscriber, asyncio.Event()

        def on_wake(message: dict[str, object]) -> None:
            woken.set()

        await subscriber.add(earlier.payload.hex, on_wake)
        try:
            while True:
                lease, position, _ = await self._connection.db(uploads.position, earlier.transfer)
                if lease != earlier.lease or position >= end:
                    return
                woken.clear()
                await self._publish_rest(earlier, chunk_size, position, end)
                try:
                    async with asyncio.timeout(SETTLE_LOOK_SECONDS):
                        await woken.wait()
                except TimeoutError:
                    continue
        finally:
            await subscriber.remove(earlier.payload.hex, on_wake)

    async def _publish_rest(self, earlier: Earlier, chunk_size: int, start: int, end: int) -> None:
        """Publish tasks for what is buffered and not stored. Those that its own consumer published just find it done."""
        size = max(1, conf.current().segment_size // chunk_size) * chunk_size
        for offset in range(start, end, size):
            length = min(size, end - offset)
            request = StoreRequest(
                transfer=earlier.transfer,
                payload=earlier.payload,
                lease=earlier.lease,
                chunks=ChunkRange(offset // chunk_size, -(-(offset + length) // chunk_size)),
                chunk_size=chunk_size,
                offset=offset,
                length=length,
                ends=offset + length if length % chunk_size else None,  # a short chunk is the last
                again=True,
            )
            await self._process.publish(dispatch.STORE, request.arguments(), marker=request.marker)


async def _until(work: asyncio.Future[None]) -> None:
    await work


async def _discard(upload: AnyUpload) -> None:
    """Remove what an upload has put into the buffer, once it puts no more there."""
    if upload.task is not None:
        await asyncio.wait([upload.task])
    receiver = upload.receiver
    if isinstance(upload, InlineUploadReceiver) or receiver.stored == receiver.received:
        return
    await upload.settle()
    kept = ChunkRange(receiver.stored, receiver.received)
    with contextlib.suppress(BufferUnavailable):  # then it expires
        await chunks.adrop(upload.opened.payload, upload.lease, kept)


def _terms() -> Terms:
    options = conf.current()
    return Terms(window=options.window, segment_size=options.segment_size, max_size=options.max_payload)


def _is_inline(offer: UploadOffer) -> bool:
    return offer.size is not None and offer.size <= conf.current().inline_limit


def _iso(moment: datetime.datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
