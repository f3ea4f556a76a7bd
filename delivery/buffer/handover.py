"""Runs handed straight to a task that is at work on their upload, without another message through Celery.

A task that takes more says so by an entry of its own in the upload's list; a run is handed over only while the list is
there. Taking removes the whole list: what comes later needs a message, or a task that says so again. Hence a run either
has somebody who will look for it, or is published; one that a killed worker took along is asked for again, as any other.
"""

from __future__ import annotations

from uuid import UUID

from delivery.buffer import bulk, keys
from delivery.buffer.clients import aclient, reporting

OPEN_SECONDS = 10  # without a sign of the task that says so: most likely it was killed
MOST_ORDERS = 10_000  # all of them: a window has a few
_OPEN = b""


def opening(payload: UUID, lease: int) -> tuple[bulk.Command, ...]:
    """Return the commands by which a task says that it takes more runs, until it does `take` them."""
    key = keys.handover(payload, lease)
    return ("RPUSH", key, _OPEN), ("EXPIRE", key, OPEN_SECONDS)


async def agive(payload: UUID, lease: int, order: bytes) -> bool:
    """Hand a run over; return False where no task takes it. Raises `BufferUnavailable`."""
    with reporting():
        return bool(await aclient().rpushx(keys.handover(payload, lease), order))


def take(payload: UUID, lease: int) -> list[bytes]:
    """Return what was handed over; from now on nothing is. Raises `BufferUnavailable`."""
    (found,) = bulk.run(("LPOP", keys.handover(payload, lease), MOST_ORDERS))
    return [order for order in found or () if order != _OPEN]
