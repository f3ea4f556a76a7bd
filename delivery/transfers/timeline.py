"""The timeline: events are recorded in memory and written in batches, never on the path of a chunk.

Each process writes its own events: a web process every second, a task at its end. Events hold ids and numbers, no names. The
database does not check the ids: the rows may be deleted before the event is written, and events outlive them until they
expire.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import logging
from typing import Any
from uuid import UUID

from django.db import DatabaseError
from django.db.models import Count
from django.utils import timezone

from delivery.models import Event
from delivery.transfers import sql
from delivery.transfers.sql import Insert

logger = logging.getLogger(__name__)

REPEATED = frozenset(
    {"resumed", "accepted", "detached", "lost", "declined", "storage_unavailable", "unsealed", "damaged"}
)
MOST_REPEATED = 100  # of these kinds that are kept of one transfer, the newest: a peer may repeat them for ever
MOST_WAITING = 10_000  # beyond it the oldest are dropped: a timeline may have gaps, memory may not grow

Line = tuple[datetime.datetime, str, UUID | None, UUID | None, dict[str, Any]]  # as `_LINES` has them

_waiting: collections.deque[Line] = collections.deque(maxlen=MOST_WAITING)
_LINES = Insert(Event, "at", "kind", "payload", "transfer", "detail")


def note(kind: str, *, payload: UUID | None = None, transfer: UUID | None = None, **detail: Any) -> None:
    """Note an event, if and when the surrounding transaction commits. `detail`: ids and numbers."""
    line = (timezone.now(), kind, payload, transfer, detail)
    sql.on_commit(lambda: _waiting.append(line))


def write() -> None:
    """Write all that was noted. Never raises: where the database is away, they wait for the next time.

    Threads may write at once: what one has taken it writes, and none waits for another, which may wait for a
    transaction of the first.
    """
    if not (batch := _taken()):
        return
    try:
        with sql.atomic():
            _LINES.run(_newest(batch))
            _forget_surplus(batch)
    except DatabaseError as error:
        _waiting.extendleft(reversed(batch))
        logger.warning("events wait: %s", type(error).__name__)


def _taken() -> list[Line]:
    batch = []
    with contextlib.suppress(IndexError):
        while True:
            batch.append(_waiting.popleft())
    return batch


def _newest(batch: list[Line]) -> list[Line]:
    """Return a batch without those repeated events that others of it would push out at once."""
    count: collections.Counter[UUID | None] = collections.Counter()
    kept = []
    for line in reversed(batch):
        if line[1] in REPEATED:
            count[_about(line)] += 1
        if line[1] not in REPEATED or count[_about(line)] <= MOST_REPEATED:
            kept.append(line)
    return kept[::-1]


def _about(line: Line) -> UUID | None:
    """Return the transfer that an event is about, or else the payload."""
    return line[3] or line[2]


def _forget_surplus(batch: list[Line]) -> None:
    """Delete the oldest of those repeated events that are too many, of what the batch is about."""
    repeated = [line for line in batch if line[1] in REPEATED]
    for field, wanted in (("transfer", {line[3] for line in repeated}), ("payload", _payloads_alone(repeated))):
        rows = Event.objects.filter(kind__in=REPEATED, **{f"{field}__in": wanted - {None}})
        if field == "payload":
            rows = rows.filter(transfer=None)
        many = rows.order_by().values_list(field).annotate(count=Count("pk")).filter(count__gt=MOST_REPEATED)
        for key, _ in many if wanted - {None} else ():
            oldest_kept = rows.filter(**{field: key}).order_by("-pk").values_list("pk", flat=True)[MOST_REPEATED - 1]
            rows.filter(**{field: key}, pk__lt=oldest_kept).delete()


def _payloads_alone(lines: list[Line]) -> set[UUID | None]:
    """Return the payloads of events that are about no transfer."""
    return {line[2] for line in lines if line[3] is None}
