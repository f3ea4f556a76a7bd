"""Uploads of one connection: their offers answered, their intakes run, their ends told."""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

from delivery import conf, dispatch, notify, policy
from delivery.buffer import chunks
from delivery.errors import BufferUnavailable, Refused, TransferAborted
from delivery.protocol import messages
from delivery.protocol.frames import Chunk
from delivery.protocol.messages import UploadOffer
from delivery.protocol.receiver import ChunkRange, Receiver
from delivery.protocol.states import State
from delivery.server import discarding, early
from delivery.server.inline_upload import InlineIntake
from delivery.server.upload import Intake, Reports
from delivery.transfers import outcomes, uploads
from delivery.transfers.segments import StoreRequest
from delivery.transfers.uploads import DetachedUpload, Earlier, FinishedUpload, Opened

if TYPE_CHECKING:
    from delivery.server.connection import Session

logger = logging.getLogger(__name__)

SETTLE_SECONDS = 5.0
SETTLE_LOOK_SECONDS = 0.5
BUSY_RETRY_AFTER = 2.0


def keep(session: Session, receiver: Receiver, chunk: Chunk) -> None:
    """Keep a chunk; one that came early waits on its receiver for the answer to the offer."""
    intake = session.intakes.get(receiver.handle)
    if intake is not None:
        intake.keep(chunk)
    else:
        session.early[receiver.handle] = chunk


async def answer(session: Session, receiver: Receiver) -> None:
    """Answer an offer, and take the upload in. Offers of one transfer are answered in the order in which they came."""
    async with _answering(session, receiver):
        await _answer(session, receiver)


async def _answer(session: Session, receiver: Receiver) -> None:
    try:
        opened = await _open(session, receiver)
    except TransferAborted:
        return  # the login no longer holds: the connection is closing
    except Refused as refused:
        session.early.pop(receiver.handle, None)
        if receiver.live:
            session.connection.reject(
                receiver,
                refused.code,
                refused.message,
                max_size=refused.max_size,
                retry_after=refused.retry_after,
            )
        session.wake()
        return
    if not receiver.live:  # aborted by its sender meanwhile
        await _abandoned(session, receiver, opened)
        return
    if isinstance(opened, FinishedUpload):
        session.early.pop(receiver.handle, None)
        if receiver.expected_digests() - {opened.sha256}:  # an early `finish` that contradicts what is stored
            session.connection.reject(receiver, "mismatch")
            session.wake()
        else:
            _done_early(session, receiver, opened)
        return
    await _accept(session, receiver, opened)


async def _open(session: Session, receiver: Receiver) -> Opened | FinishedUpload:
    offer = receiver.offer
    if not isinstance(offer, UploadOffer):
        raise Refused("unsupported")
    if session.process.draining or session.leaving or session.closing:
        raise Refused("draining")
    wait = session.process.offers.count(session.user.pk, session.quota.offers_per_minute)
    if wait is not None:
        raise Refused("rate", f"at most {session.quota.offers_per_minute} offers a minute", retry_after=wait)
    await session.confirm()
    if early.may_come(session, receiver) and (finished := await early.take(session, receiver, offer)) is not None:
        return finished
    if len(session.intakes) >= conf.current().max_live_transfers:
        raise Refused("busy", "too many live transfers on this connection", retry_after=BUSY_RETRY_AFTER)
    earlier = await session.db(uploads.find, session.user.pk, session.require_holder(), offer)
    if earlier is None and session.process.buffer_full and not _is_inline(offer):
        raise Refused("busy", "the buffer is full", retry_after=BUSY_RETRY_AFTER)
    admitted = await session.process.admit(session.user, offer)  # before anybody is disturbed
    workers = bool(await session.process.workers_alive())
    if earlier is not None and workers:
        await _settle(session, earlier)
    holder = session.require_holder()
    return await session.change(uploads.open_upload, session.user, holder, offer, admitted, workers=workers)


def _is_inline(offer: UploadOffer) -> bool:
    return offer.size is not None and offer.size <= conf.current().inline_limit


async def _accept(session: Session, receiver: Receiver, opened: Opened) -> None:
    for other in list(session.intakes.values()):
        if other.opened.transfer == opened.transfer:  # offered again on the same connection
            drop(session, other, "taken_over", final=False)
    receiver.size = opened.size if receiver.size is None else receiver.size
    credit = session.process.credit
    waits = not opened.inline and not credit.fits(receiver, opened.stored, session.user.pk)
    terms = replace(session.terms(), window=credit.window(), max_size=opened.max_size)
    session.connection.accept(
        receiver,
        stored=opened.stored,
        terms=terms,
        now=time.monotonic(),
        expires=_iso(opened.expires),
        hold=opened.hold or waits,
    )
    kind = InlineIntake if opened.inline else Intake
    reports = Reports(
        changed=session.wake,
        rewind=lambda which, seq: _rewind(session, which, seq),
        confirm=session.confirm,
        moved_by=session.moved_by,
    )
    intake = kind(session.process, receiver, opened, reports)
    first = session.early.pop(receiver.handle, None)
    if receiver.live:
        if not opened.inline:
            credit.join(receiver, session.wake, session.user.pk, waits=waits)
        session.intakes[receiver.handle] = intake
        if first is not None and receiver.received > receiver.stored:
            intake.keep(first)
        intake.task = session.spawn(_take_in(session, intake), "upload")
        session.timer.start()
    session.wake()
    if opened.displaced:
        await notify.atell_channel(opened.displaced, "taken_over", transfer=opened.transfer.hex, lease=opened.lease)


def _iso(moment: datetime.datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


async def _take_in(session: Session, intake: Intake | InlineIntake) -> None:
    try:
        finished = await intake.run()
    except TransferAborted as aborted:
        if aborted.code in ("digest", "too_large"):
            await session.db(outcomes.fail, intake.opened.payload, aborted.code)
        final = aborted.final and aborted.code not in ("storage_unavailable", "busy")
        drop(session, intake, aborted.code, final=final, message=aborted.message)
        return
    finally:
        session.process.credit.leave(intake.receiver)
    if session.intakes.pop(intake.receiver.handle, None) is not None:
        _done(session, intake.receiver, finished)


def _done_early(session: Session, receiver: Receiver, finished: FinishedUpload) -> None:
    """Answer an offer of what is complete already; by its own early data, it is accepted first."""
    if finished.fresh:
        session.connection.accept(receiver, stored=0, terms=session.terms(), now=time.monotonic())
        receiver.on_stored(receiver.received)
    _done(session, receiver, finished)


def _done(session: Session, receiver: Receiver, finished: FinishedUpload) -> None:
    if receiver.live:
        session.connection.done(receiver, size=finished.size, sha256=finished.sha256, payload=str(finished.payload))
    session.wake()


def drop(session: Session, intake: Intake | InlineIntake, code: str, *, final: bool, message: str = "") -> None:
    """Tell the peer that an upload ends here; what was taken in is stored where it is to go on elsewhere."""
    if _let_go(session, intake.receiver) is None:
        return
    if intake.receiver.live:
        session.connection.queue_acks(time.monotonic())
        session.connection.abort(intake.receiver, code, message, final=final)
    work = session.process.see_through(discarding.discard(intake)) if final else detach(session, intake)
    session.spawn(work, "detach")
    session.wake()


async def release_held(session: Session) -> None:
    """Give credit to uploads that resumed while no worker lived, as soon as one does."""
    waits = session.process.credit.waits
    receivers = [intake.receiver for intake in session.intakes.values()]
    held = [receiver for receiver in receivers if receiver.held and not waits(receiver)]
    if held and await session.process.workers_alive():
        for receiver in held:
            receiver.release()
        session.wake()


async def aborted(session: Session, receiver: Receiver, message: messages.Abort) -> None:
    """The sender ended it, for good or on this connection; or we did, with the third nack of one chunk."""
    intake = _let_go(session, receiver)
    if intake is None:
        return
    if message.final and message.code == "too_large":  # it was we who found that
        await session.db(outcomes.fail, intake.opened.payload, message.code)
    elif message.final:
        await session.process.see_through(discarding.cancel(session, intake))
    else:
        await detach(session, intake)


async def detach(session: Session, intake: Intake | InlineIntake) -> None:
    """Store what was taken in, and note that nobody holds the upload. An offer of it waits for that."""
    async with _answering(session, intake.receiver):
        if intake.task is not None:
            await asyncio.wait([intake.task])  # two may not flush at once
        try:
            await intake.detach()
        finally:  # whatever becomes of what was taken in
            await _note_detached(session, intake.opened, intake.lease, session.close_code)


async def _note_detached(session: Session, opened: Opened, lease: int, close_code: int | None) -> None:
    holder = session.require_holder()
    await session.process.detached.put(DetachedUpload(opened.transfer, holder.session, lease, close_code))


def _answering(session: Session, receiver: Receiver) -> asyncio.Lock:
    """Return the lock of whoever answers or lets go of a transfer on this connection: one after the other."""
    return session.answering.setdefault(UUID(receiver.transfer), asyncio.Lock())


def _let_go(session: Session, receiver: Receiver) -> Intake | InlineIntake | None:
    """Take an upload from its connection and end its run; return it, None where that was done already."""
    intake = session.intakes.pop(receiver.handle, None)
    session.process.credit.leave(receiver)  # here too: a task that is cancelled before its first step never gets to it
    if intake is not None and intake.task is not None and intake.task is not asyncio.current_task():
        intake.task.cancel()
    return intake


def _rewind(session: Session, receiver: Receiver, seq: int) -> None:
    session.connection.queue_acks(time.monotonic())
    session.act(session.connection.rewind(receiver, seq, "lost"))
    session.wake()


async def _abandoned(session: Session, receiver: Receiver, opened: Opened | FinishedUpload) -> None:
    """The sender ended the upload, for good or on this connection, while we were answering its offer."""
    session.early.pop(receiver.handle, None)
    if not isinstance(opened, Opened):
        return
    if receiver.state is State.ABORTED:
        cancelling = session.db(outcomes.cancel_payload, opened.payload, by=policy.address_of(session.user))
        await session.process.see_through(cancelling)
    else:
        await _note_detached(session, opened, opened.lease, None)


async def _settle(session: Session, earlier: Earlier) -> None:
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
            await _until_stored(session, earlier, chunk_size, end)
    except TimeoutError:
        logger.info("upload %s resumes before all that was buffered is stored", earlier.payload)
    except BufferUnavailable as error:
        logger.warning("%s", error)


async def _publish_rest(session: Session, earlier: Earlier, chunk_size: int, start: int, end: int) -> None:
    """Publish tasks for what is buffered and not stored. Those that its own consumer published just find it done."""
    size = max(1, session.terms().segment_size // chunk_size) * chunk_size
    for offset in range(start, end, size):
        length = min(size, end - offset)
        order = StoreRequest(
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
        await session.process.publish(dispatch.STORE, order.arguments(), marker=order.marker)


async def _until_stored(session: Session, earlier: Earlier, chunk_size: int, end: int) -> None:
    """Ask for what is buffered, and again, until it is stored: whoever asked before may be gone."""
    woken = asyncio.Event()

    def on_wake(message: dict[str, object]) -> None:
        woken.set()

    await session.process.subscriber.add(earlier.payload.hex, on_wake)
    try:
        while True:
            lease, position, _ = await session.db(uploads.position, earlier.transfer)
            if lease != earlier.lease or position >= end:
                return
            woken.clear()
            await _publish_rest(session, earlier, chunk_size, position, end)
            try:
                async with asyncio.timeout(SETTLE_LOOK_SECONDS):
                    await woken.wait()
            except TimeoutError:
                continue
    finally:
        await session.process.subscriber.remove(earlier.payload.hex, on_wake)
