"""The Celery tasks, which call `delivery.transfers`: idempotent, each with its own options.

The site's own Celery app runs them; nothing of its configuration is changed. Unknown arguments are ignored, since a
rolling deploy mixes versions.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from celery import Task, shared_task

from delivery import dispatch
from delivery.transfers import attachments, cleanup, digests, handover, outbox, ranges, timeline
from delivery.transfers.segments import StoreRequest
from delivery.worker import draining

_SHORT: dict[str, Any] = {
    "bind": True,
    "serializer": "json",
    "ignore_result": True,
    "acks_late": True,
    "reject_on_worker_lost": True,
}


def _worker(task: Task[Any, Any]) -> str:
    return str(task.request.hostname or "")


@shared_task(name=dispatch.STORE, **_SHORT)
def store_segment(self: Task[Any, Any], **arguments: Any) -> None:
    """Store one run of an upload, the runs in `more`, and runs that are handed over meanwhile."""
    worker = _worker(self)
    orders = map(StoreRequest.of, [arguments, *arguments.get("more", ())])
    handover.store_all(orders, worker=worker, draining=lambda: draining(worker))
    timeline.write()


@shared_task(name=dispatch.STAGE, **_SHORT)
def stage_range(self: Task[Any, Any], payload: str, range: int, count: int = 1, **_ignored: Any) -> None:
    """Stage one range of a payload, or a few."""
    ranges.stage(UUID(payload), range, worker=_worker(self), count=count)
    timeline.write()


# Acked early: it is long, and its claim would refuse a redelivery while it runs.
@shared_task(name=dispatch.SEAL, bind=True, serializer="json", ignore_result=True, acks_late=False)
def seal_payload(self: Task[Any, Any], /, payload: str, **_ignored: Any) -> None:
    """Compute the digest of a payload, and complete it."""
    worker = _worker(self)
    digests.seal(UUID(payload), worker=worker, draining=lambda: draining(worker))
    timeline.write()


@shared_task(name=dispatch.ANNOUNCE, **_SHORT)
def announce(self: Task[Any, Any], notice: int, **_ignored: Any) -> None:
    """Send one signal to the site's handlers."""
    outbox.announce(notice)


@shared_task(name=dispatch.ATTACH, **_SHORT)
def attach_payload(self: Task[Any, Any], attachment: int, **_ignored: Any) -> None:
    """Compose a payload into the file of a model's field."""
    attachments.compose(attachment)
    timeline.write()


@shared_task(name=dispatch.SWEEP, **_SHORT)
def sweep(self: Task[Any, Any], **_ignored: Any) -> None:
    """Do what is due: `manage.py delivery_sweep` does the same from cron."""
    cleanup.sweep()
