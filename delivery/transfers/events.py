"""The timeline: events are noted at once, written in batches, never on the path of a chunk.

Each process writes what it noted: a web process every second, a task at its end. Events hold ids and numbers, no names.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import logging
from typing import Any
from uuid import UUID

from django.db import DatabaseError, IntegrityError, router, transaction
from django.utils import timezone

from delivery.models import Event, Payload, Transfer
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
        try:
            # SQLite looks at keys at COMMIT: inside the site's own transaction that would fail with ours.
            _write(_existing(batch) if _in_transaction() else batch)
        except IntegrityError:  # something is gone by now, and its events go with it
            _write(_existing(batch))
    except IntegrityError as error:  # deleted in this very moment
        logger.warning("%d events are dropped: %s", len(batch), type(error).__name__)
    except DatabaseError as error:
        _waiting.extendleft(reversed(batch))
        logger.warning("events wait: %s", type(error).__name__)


def _taken() -> list[Line]:
    batch = []
    with contextlib.suppress(IndexError):
        while True:
            batch.append(_waiting.popleft())
    return batch


def _in_transaction() -> bool:
    return bool(transaction.get_connection(router.db_for_write(Event)).in_atomic_block)


def _write(batch: list[Line]) -> None:
    with transaction.atomic():
        _LINES.run(batch)


def _existing(batch: list[Line]) -> list[Line]:
    """Return the events of what exists still."""
    payloads = _keys(Payload, {payload for _, _, payload, _, _ in batch})
    transfers = _keys(Transfer, {transfer for _, _, _, transfer, _ in batch})
    return [line for line in batch if line[2] in payloads and line[3] in transfers]


def _keys(model: type[Payload] | type[Transfer], keys: set[UUID | None]) -> set[UUID | None]:
    wanted = [key for key in keys if key is not None]
    return {*model._default_manager.filter(pk__in=wanted).values_list("pk", flat=True), None}
