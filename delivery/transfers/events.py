"""The timeline: events are noted at once, written in batches, never on the path of a chunk.

Each process writes what it noted: a web process every second, a task at its end. Events hold ids and numbers, no names.
The database does not check their ids: what they tell of may be deleted before they are written, and they outlive it
until they expire.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import logging
from typing import Any
from uuid import UUID

from django.db import DatabaseError, transaction
from django.utils import timezone

from delivery.models import Event
from delivery.transfers.rows import Insert

logger = logging.getLogger(__name__)

MOST_WAITING = 10_000  # beyond it the oldest are dropped: a timeline may have gaps, memory may not grow

Line = tuple[datetime.datetime, str, UUID | None, UUID | None, dict[str, Any]]  # as `_LINES` has them

_waiting: collections.deque[Line] = collections.deque(maxlen=MOST_WAITING)
_LINES = Insert(Event, "at", "kind", "payload", "transfer", "detail")


def note(kind: str, *, payload: UUID | None = None, transfer: UUID | None = None, **detail: Any) -> None:
    """Note an event, if and when the surrounding transaction commits. `detail`: ids and numbers."""
    line = (timezone.now(), kind, payload, transfer, detail)
    transaction.on_commit(lambda: _waiting.append(line))


def write() -> None:
    """Write all that was noted. Never raises: where the database is away, they wait for the next time.

    Threads may write at once: what one has taken it writes, and none waits for another, which may wait for a
    transaction of the first.
    """
    if not (batch := _taken()):
        return
    try:
        with transaction.atomic():
            _LINES.run(batch)
    except DatabaseError as error:
        _waiting.extendleft(reversed(batch))
        logger.warning("events wait: %s", type(error).__name__)


def _taken() -> list[Line]:
    batch = []
    with contextlib.suppress(IndexError):
        while True:
            batch.append(_waiting.popleft())
    return batch
