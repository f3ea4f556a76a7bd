"""Notices: the site's signals, each sent at least once, with effects in the same database happening once.

A notice is written in the transaction of the change that it tells of. A task then runs each handler in a transaction
that also marks it handled; one that raises is rolled back alone and tried again with backoff.
"""

from __future__ import annotations

import datetime
import logging
from typing import Any

from asgiref.sync import async_to_sync
from django.utils import timezone

from delivery import dispatch
from delivery.errors import BufferUnavailable
from delivery.models import Notice, Payload, Transfer
from delivery.signals import BY_NAME
from delivery.transfers import sql

logger = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 3600.0


def wanted(signal: str) -> bool:
    """Return whether a handler is connected to a signal."""
    return bool(BY_NAME[signal].has_listeners(Payload))


def add(signal: str, payload: Payload, transfer: Transfer | None = None) -> None:
    """Write a notice inside the caller's transaction. Nothing is written where no handler is connected."""
    if not wanted(signal):
        return
    notice = Notice.objects.create(signal=signal, payload=payload, transfer=transfer, due_at=timezone.now())
    sql.on_commit(lambda: _publish(notice.pk))


def _publish(pk: int) -> None:
    try:
        dispatch.publish(dispatch.ANNOUNCE, {"notice": pk})
    except BufferUnavailable as error:
        logger.warning("notice %d waits for the sweep: %s", pk, error)


def announce(pk: int) -> bool:
    """Send a notice's signal to each handler that has not had it; return whether all have now."""
    notice = Notice.objects.filter(pk=pk).first()
    if notice is None:
        return True
    failed = [name for name, handler in _handlers(notice.signal) if not _handle(pk, name, handler)]
    if not failed:
        Notice.objects.filter(pk=pk).delete()
        return True
    return False


def announce_due(limit: int = 100) -> None:
    """Send what was to be sent by now: the sweep's part."""
    due = Notice.objects.filter(due_at__lte=timezone.now()).order_by("due_at").values_list("pk", flat=True)
    for pk in list(due[:limit]):
        announce(pk)


def _handlers(signal: str) -> list[tuple[str, Any]]:
    """Return the handlers of a signal, each with a name that is the same in every process."""
    sync, asynchronous = BY_NAME[signal]._live_receivers(Payload)
    # An asynchronous one runs here too: its ORM work in this very thread, and so in this transaction.
    runnable = [*((handler, handler) for handler in sync), *((one, async_to_sync(one)) for one in asynchronous)]
    return [(f"{handler.__module__}.{handler.__qualname__}", run) for handler, run in runnable]


def _handle(pk: int, name: str, handler: Any) -> bool:
    """Run one handler, its effects and its mark in one transaction; return whether it is through."""
    try:
        with sql.atomic():
            notice = sql.lock(Notice.objects.filter(pk=pk)).first()
            if notice is None or name in notice.handled:
                return True
            handler(
                signal=BY_NAME[notice.signal],
                sender=Payload,
                payload=notice.payload,
                **({"transfer": notice.transfer} if notice.transfer_id else {}),
            )
            notice.handled.append(name)
            notice.save(update_fields=["handled"])
    except Exception as error:
        # The site's own code: whatever it raises is its fault, shown in the log and in the admin, and tried again.
        logger.exception("handler %s failed", name)
        _postpone(pk, error)
        return False
    return True


def _postpone(pk: int, error: Exception) -> None:
    with sql.atomic():
        notice = sql.lock(Notice.objects.filter(pk=pk)).first()
        if notice is None:
            return
        wait = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(notice.attempts, 20))
        notice.attempts += 1
        notice.error = type(error).__name__[:255]
        notice.due_at = timezone.now() + datetime.timedelta(seconds=wait)
        notice.save(update_fields=["attempts", "error", "due_at"])
