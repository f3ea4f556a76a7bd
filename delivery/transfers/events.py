"""The timeline: events are noted at once, written in batches, never on the path of a chunk.

Each process writes what it noted: a web process every second, a task at its end. Events hold ids and numbers, no names.
"""

from __future__ import annotations

import collections
import logging
import threading
from typing import Any
from uuid import UUID

from django.db import DatabaseError, IntegrityError, transaction
from django.utils import timezone

from delivery.models import Event, Payload, Transfer
from delivery.transfers.rows import insert

logger = logging.getLogger(__name__)

MOST_WAITING = 10_000  # beyond it the oldest are dropped: a timeline may have gaps, memory may not grow

_waiting: collections.deque[Event] = collections.deque(maxlen=MOST_WAITING)
_lock = threading.Lock()


def note(kind: str, *, payload: UUID | None = None, transfer: UUID | None = None, **detail: Any) -> None:
    """Note an event, if and when the surrounding transaction commits. `detail`: ids and numbers."""
    event = Event(at=timezone.now(), kind=kind, payload_id=payload, transfer_id=transfer, detail=detail)
    transaction.on_commit(lambda: _waiting.append(event))


def write() -> None:
    """Write all that was noted. Never raises: where the database is away, they wait for the next time."""
    with _lock:
        batch = [_waiting.popleft() for _ in range(len(_waiting))]
        if not batch:
            return
        try:
            with transaction.atomic():
                _write(batch)
        except IntegrityError as error:  # deleted in this very moment
            logger.warning("%d events are dropped: %s", len(batch), type(error).__name__)
        except DatabaseError as error:
            _waiting.extendleft(reversed(batch))
            logger.warning("events wait: %s", type(error).__name__)


def _write(batch: list[Event]) -> None:
    """Write a batch, but for what is gone by now: its events go with it."""
    payloads = _existing(Payload, {event.payload_id for event in batch})
    transfers = _existing(Transfer, {event.transfer_id for event in batch})
    insert(Event, [event for event in batch if event.payload_id in payloads and event.transfer_id in transfers])


def _existing(model: type[Payload] | type[Transfer], keys: set[UUID | None]) -> set[UUID | None]:
    wanted = [key for key in keys if key is not None]
    return {*model._default_manager.filter(pk__in=wanted).values_list("pk", flat=True), None}
