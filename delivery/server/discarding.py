"""Uploads that have ended for good: what lies of them in the buffer goes at once, and not when its time is up.

Else whoever offers, sends and takes back again would fill Redis: credit counts only what lives.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from delivery import policy
from delivery.buffer import chunks
from delivery.errors import BufferUnavailable
from delivery.protocol.receiver import ChunkRange
from delivery.server.inline_upload import InlineIntake
from delivery.server.upload import Intake
from delivery.transfers import outcomes

if TYPE_CHECKING:
    from delivery.server.connection import Session


async def cancel(session: Session, intake: Intake | InlineIntake) -> None:
    """Cancel an upload as its sender asks, whether or not their connection lasts that long."""
    await session.db(outcomes.cancel_payload, intake.opened.payload, by=policy.address_of(session.user))
    await discard(intake)


async def discard(intake: Intake | InlineIntake) -> None:
    """Remove what an intake has put into the buffer, once it puts no more there."""
    if intake.task is not None:
        await asyncio.wait([intake.task])
    receiver = intake.receiver
    if isinstance(intake, InlineIntake) or receiver.stored == receiver.received:
        return
    await intake.settle()
    kept = ChunkRange(receiver.stored, receiver.received)
    with contextlib.suppress(BufferUnavailable):  # then it expires
        await chunks.adrop(intake.opened.payload, intake.lease, kept)
