"""Publishes tasks, by name, through the site's own Celery app, each guarded by a marker.

Every task's arguments carry `v`, the version of their layout: deploys mix versions, and a task ignores what it does not
know.
"""

from __future__ import annotations

from dataclasses import dataclass
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


def queue_of(task: str) -> str:
    """Return the name of the queue that a task of ours goes to: as `DELIVERY` says, else as the site routes it."""
    options = conf.current()
    named = options.effective_seal_queue() if task == SEAL else options.queue
    if named is not None:
        return named
    # Not `route()`, which adds a queue to the app's that is not there yet: a worker would begin to consume it.
    route: Any = current_app.amqp.router.lookup_route(task)
    queue = route if isinstance(route, str) else (route or {}).get("queue")
    return str(getattr(queue, "name", queue) or current_app.conf.task_default_queue)


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


@dataclass(frozen=True)
class SiteApp:
    """What the system checks want to know of the site's Celery app. Asks no broker."""

    configured: bool  # somebody made one; else it is Celery's fallback, which knows no broker
    eager: bool
    accepts: tuple[str, ...]  # names and content types
    broker_urls: tuple[str, ...]
    unknown_queues: tuple[str, ...]  # of ours, where the app declares its queues and makes no other

    @property
    def accepts_json(self) -> bool:
        return bool({"json", "application/json"} & set(self.accepts))


def _broker_urls(given: Any) -> tuple[str, ...]:
    urls = given.split(";") if isinstance(given, str) else given or ()
    return tuple(url for url in urls if isinstance(url, str))


def site_app() -> SiteApp:
    """Look at the site's Celery app."""
    options = current_app.conf
    ours = dict.fromkeys((queue_of(STORE), queue_of(SEAL)))
    unknown = () if options.task_create_missing_queues else tuple(set(ours) - set(current_app.amqp.queues))
    return SiteApp(
        configured=current_app.main != "default" or bool(options.broker_url),
        eager=bool(options.task_always_eager),
        accepts=tuple(options.accept_content),
        broker_urls=_broker_urls(options.broker_url),
        unknown_queues=unknown,
    )
