"""Publishes tasks, by name, through the site's own Celery app, each guarded by a marker.

Every task's arguments carry `v`, the version of their layout: deploys mix versions, and a task ignores what it does not
know.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from celery import current_app
from kombu.exceptions import OperationalError

from delivery import conf
from delivery.errors import BufferUnavailable

VERSION = 1

STORE = "delivery.store_segment"
STAGE = "delivery.stage_range"
SEAL = "delivery.seal_payload"
ANNOUNCE = "delivery.announce"
ATTACH = "delivery.attach_payload"
SWEEP = "delivery.sweep"


def publish(task: str, arguments: dict[str, Any]) -> None:
    """Publish a task. Blocks for about a millisecond: call it from a thread.

    Raises `BufferUnavailable` where the broker does not take it: whoever waits asks again.
    """
    options = conf.current()
    queue = options.effective_seal_queue() if task == SEAL else options.queue
    try:
        current_app.send_task(
            task,
            kwargs={"v": VERSION, **arguments},
            queue=queue,
            serializer="json",
            ignore_result=True,
            retry=False,
        )
    except (OperationalError, OSError) as error:
        raise BufferUnavailable(f"the broker does not take tasks: {type(error).__name__}") from error


def store_marker(payload: UUID, lease: int, start: int) -> str:
    return f"store:{payload.hex}:{lease}:{start}"


def stage_marker(payload: UUID, index: int) -> str:
    return f"stage:{payload.hex}:{index}"


def seal_marker(payload: UUID) -> str:
    return f"seal:{payload.hex}"
