"""Deliveries of one connection: accepted, acked, done, declined, ended. The counterpart of `uploading`."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING
from uuid import UUID

from delivery import notify
from delivery.errors import Refused, StorageUnavailable, TransferAborted
from delivery.protocol import events, messages
from delivery.protocol.sender import Sender
from delivery.server.download import Outflow
from delivery.transfers import deliveries
from delivery.transfers.deliveries import AcceptedDelivery, DetachedDelivery, Received

if TYPE_CHECKING:
    from delivery.server.connection import Session

logger = logging.getLogger(__name__)

INLINE_SECONDS = 0.05
OFFER_AGAIN_SECONDS = 5.0


def begin(session: Session, outflow: Outflow) -> None:
    """Serve a delivery that has just been offered."""
    session.outflows[outflow.sender.handle] = outflow
    if outflow.waiting.inline is None:  # else there is nothing to fetch
        outflow.task = session.spawn(_flow(session, outflow), "delivery")
    session.timer.transfers_live()
    session.wake()


async def _flow(session: Session, outflow: Outflow) -> None:
    try:
        await outflow.run()
    except TransferAborted as aborted:
        drop(session, outflow, aborted.code, final=True)
    except StorageUnavailable as error:
        logger.error("%s", error)
        drop(session, outflow, "storage_unavailable", final=False)


def drop(session: Session, outflow: Outflow, code: str, *, final: bool) -> None:
    """Tell the peer that a delivery ends here."""
    _let_go(session, outflow.sender)
    if outflow.sender.live:
        session.connection.abort(outflow.sender, code, final=final)
    session.offering.set_aside(outflow.waiting.transfer)
    if not final and code != "taken_over":
        session.spawn(_offer_again(session, outflow.waiting.transfer), "offer again")
    session.wake()


def withdraw(session: Session, outflow: Outflow) -> None:
    """End a delivery whose user may not have it any more. Its row stays: should they be let in again, it is offered again."""
    drop(session, outflow, "forbidden", final=True)
    session.offering.forget(outflow.waiting.transfer)
    session.spawn(detach(session, outflow), "detach")


async def _offer_again(session: Session, transfer: UUID) -> None:
    """Offer what we let go of once more: its client may stay on this very connection for days."""
    await asyncio.sleep(random.uniform(0.5, 1.0) * OFFER_AGAIN_SECONDS)
    session.offering.forget(transfer)
    session.offering.look()


def _let_go(session: Session, sender: Sender) -> Outflow | None:
    """Take a delivery from its connection and end its run; return it, None where that was done already."""
    outflow = session.outflows.pop(sender.handle, None)
    if outflow is not None and outflow.task is not None and outflow.task is not asyncio.current_task():
        outflow.task.cancel()
    return outflow


def accepted(session: Session, sender: Sender) -> None:
    """Enter an accept into the rows, and let chunks flow."""
    outflow = session.outflows.get(sender.handle)
    if outflow is None:  # ended in this moment
        return
    if outflow.waiting.inline is None:
        session.spawn(_enter(session, outflow), "accept")
        return
    # Its `done` is most likely on its way. Who is slower than that gets its place in the rows after all.
    session.offering.made_room()
    session.wake()
    asyncio.get_running_loop().call_later(INLINE_SECONDS, _enter_slow, session, outflow)


def _enter_slow(session: Session, outflow: Outflow) -> None:
    if session.outflows.get(outflow.sender.handle) is outflow and not session.over:
        session.spawn(_enter(session, outflow), "accept")


async def _enter(session: Session, outflow: Outflow) -> None:
    transfer = outflow.waiting.transfer
    accepted = AcceptedDelivery(transfer, session.require_holder(), outflow.sender.acked_bytes)
    try:
        displaced = await session.process.accepted.put(accepted)
    except Refused as refused:
        drop(session, outflow, refused.code, final=refused.code != "taken_over")
        return
    if displaced:
        await notify.atell_channel(displaced, "taken_over", transfer=transfer.hex, lease=0)
    outflow.grant()
    session.offering.made_room()
    session.wake()


def acked(session: Session, event: events.Acked) -> None:
    """Note how far the client is, and go on with the credit that it gave."""
    outflow = session.outflows.get(event.sender.handle)
    if outflow is not None:
        if event.progressed:
            _note_position(session, outflow)
        outflow.wake()


def _note_position(session: Session, outflow: Outflow) -> None:
    session.process.note_position(outflow.waiting.transfer, session.client, outflow.sender.acked_bytes)


def done(session: Session, sender: Sender) -> None:
    """The client has all of it. It is noted at once, and not by a task, which would end with the connection."""
    outflow = _let_go(session, sender)
    if outflow is not None:
        transfer = outflow.waiting.transfer
        session.process.forget_position(transfer, session.client)
        session.offering.set_aside(transfer)  # until the rows say that it is over
        session.offering.made_room()
        noted = session.process.received.add(Received(transfer, session.client, outflow.waiting.size))
        noted.add_done_callback(lambda _: _noted(session, transfer, noted))


def _noted(session: Session, transfer: UUID, noted: asyncio.Future[None]) -> None:
    if noted.cancelled():
        return
    if (error := noted.exception()) is not None:
        logger.error("connection of %s fails", session.client, exc_info=error)
        session.close(1011, "internal error")
        return
    session.offering.forget(transfer)


async def rejected(session: Session, sender: Sender, code: str) -> None:
    """The client does not want it now, or, where it declined, not at all."""
    outflow = _let_go(session, sender)
    if outflow is not None:
        session.offering.set_aside(outflow.waiting.transfer)
        if code == "declined":
            await session.db(deliveries.decline, outflow.waiting.transfer, session.client)
        session.offering.made_room()


async def aborted(session: Session, sender: Sender, message: messages.Abort) -> None:
    """The client ended it, for good or on this connection."""
    outflow = _let_go(session, sender)
    if outflow is not None:
        session.offering.set_aside(outflow.waiting.transfer)
        if message.final:
            if message.code == "digest":  # its own disk, or ours: somebody is to look
                logger.error("client %s received other bytes than payload %s", session.client, outflow.waiting.payload)
                await session.db(deliveries.note_damaged, outflow.waiting.transfer, outflow.waiting.payload)
            await session.db(deliveries.decline, outflow.waiting.transfer, session.client)
        else:
            await detach(session, outflow)
        session.offering.made_room()


async def detach(session: Session, outflow: Outflow) -> None:
    """Note how far it got, and that nobody holds it."""
    if outflow.granted:
        transfer, channel = outflow.waiting.transfer, session.require_holder().channel
        session.process.forget_position(transfer, session.client)  # it is written with the rest
        position = outflow.sender.acked_bytes
        detached = DetachedDelivery(transfer, session.client, channel, position, session.close_code)
        await session.process.detached.put(detached)
