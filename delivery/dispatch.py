"""Publishes tasks, by name, through the site's own Celery app, each guarded by a marker.

Every task's arguments carry `v`, the version of their layout: deploys mix versions, and a task ignores what it does not
know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from celery import _state, current_app
from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES as TRANSPORTS

from delivery import conf
from delivery.errors import BufferUnavailable

VERSION = 1

STORE = "delivery.store_segment"
STAGE = "delivery.stage_range"
SEAL = "delivery.seal_payload"
ANNOUNCE = "delivery.announce"
ATTACH = "delivery.attach_payload"
SWEEP = "delivery.sweep"

#: Of beat, which know the app's own schedule and nothing else.
OWN_SCHEDULERS = ("celery.beat:PersistentScheduler", "celery.beat:Scheduler")


def queue_of(task: str) -> str:
    """Return the name of the queue that a task of ours goes to: as `DELIVERY` says, else as the site routes it."""
    options = conf.current()
    named = options.effective_seal_queue() if task == SEAL else options.queue
    if named is not None:
        return named
    # Not `route()`, which adds a missing queue to the app: a worker would begin to consume it.
    route: Any = current_app.amqp.router.lookup_route(task)
    queue = route if isinstance(route, str) else (route or {}).get("queue")
    return str(getattr(queue, "name", queue) or current_app.conf.task_default_queue)


def publish(task: str, arguments: dict[str, Any]) -> None:
    """Publish a task. Blocks for about a millisecond: call it from a thread.

    Raises `BufferUnavailable` if the broker does not accept it: the waiter asks again.
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
    """The facts about the site's Celery app that the system checks need. Does not connect to the broker."""

    configured: bool  # every thread gets the site's app, not Celery's fallback without a broker
    eager: bool
    accepts: tuple[str, ...]  # names and content types
    broker_urls: tuple[str, ...]
    unknown_transports: tuple[str, ...]  # of these URLs: what Celery takes for no broker's name
    unknown_queues: tuple[str, ...]  # of ours, where the app declares its queues and makes no other
    sweeps: bool  # beat's schedule has our sweeper, or beat is told elsewhere what to start

    @property
    def accepts_json(self) -> bool:
        return bool({"json", "application/json"} & set(self.accepts))


def _broker_urls(given: Any) -> tuple[str, ...]:
    urls = given.split(";") if isinstance(given, str) else given or ()
    return tuple(url for url in urls if isinstance(url, str))


def _transport(url: str) -> str:
    """Return the name of the transport that kombu chooses for a URL: that of a class, or an alias."""
    return url.partition("://")[0].partition("+")[0]


def site_app() -> SiteApp:
    """Look at the site's Celery app."""
    options = current_app.conf
    ours = dict.fromkeys((queue_of(STORE), queue_of(SEAL)))
    urls = _broker_urls(options.broker_url) or _broker_urls(options.broker_write_url)
    unknown = () if options.task_create_missing_queues else tuple(set(ours) - set(current_app.amqp.queues))
    return SiteApp(
        configured=_is_sites_own(getattr(_state, "default_app", None)),
        eager=bool(options.task_always_eager),
        accepts=tuple(options.accept_content),
        broker_urls=urls,
        unknown_transports=tuple(name for name in map(_transport, urls) if "." not in name and name not in TRANSPORTS),
        unknown_queues=unknown,
        sweeps=_sweeps(current_app),
    )


def _is_sites_own(app: Any) -> bool:
    """Return whether somebody made this app. `current_app` is one thread's, and tasks are published by others.

    Celery makes an app "default" where none has been set as the default one; a site's app is that from its import on, if it
    comes before the first use of `current_app`.
    """
    return app is not None and (app.main != "default" or app.set_as_current)


def _sweeps(app: Any) -> bool:
    entries = (app.conf.beat_schedule or {}).values()
    if any(isinstance(entry, dict) and entry.get("task") == SWEEP for entry in entries):
        return True
    return app.conf.beat_scheduler not in OWN_SCHEDULERS or bool(app.on_after_finalize.receivers)
