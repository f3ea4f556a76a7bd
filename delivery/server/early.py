"""Early data: a small upload that comes whole with its offer (PROTOCOL section 2), stored together with others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from delivery.errors import Refused
from delivery.protocol.messages import UploadOffer
from delivery.protocol.receiver import Receiver
from delivery.transfers.small import SmallOffer
from delivery.transfers.uploads import FinishedUpload

if TYPE_CHECKING:
    from delivery.server.connection import Session

WAIT_SECONDS = 0.01
TURNS = 3


def may_come(session: Session, receiver: Receiver) -> bool:
    """Return whether the offer's only chunk and `finish` may follow it at once (PROTOCOL section 2, early data)."""
    limits, offer = session.connection.limits, receiver.offer
    return offer.size is not None and 0 < offer.size <= min(limits.early_data, offer.chunk_size, limits.chunk_size)


async def take(session: Session, receiver: Receiver, offer: UploadOffer) -> FinishedUpload | None:
    """Store a small upload that came whole with its offer, together with others; None where it goes the long way."""
    await _until_finish(session, receiver)
    chunk = session.early.get(receiver.handle)
    if receiver.finish is None or chunk is None or not receiver.live:
        return None
    expected = frozenset(receiver.expected_digests())
    try:
        admitted = await session.process.admit_small(session.user, offer)
    except Refused:  # it may be complete already: the long way knows
        return None
    one = SmallOffer(session.user, session.require_holder(), offer, bytes(chunk.data), expected, admitted)
    return await session.process.small.put(one)


async def _until_finish(session: Session, receiver: Receiver) -> None:
    """Wait for the `finish` of early data: if its sender sent it, it is being read just now."""
    if receiver.finish is None and receiver.live:
        session.expecting[receiver.handle] = came = asyncio.Event()
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await came.wait()
        except TimeoutError:
            pass
        finally:
            del session.expecting[receiver.handle]
    for _ in range(TURNS):  # turns and not seconds: a busy loop reads later
        if receiver.finish is None and receiver.live:
            await asyncio.sleep(0)
