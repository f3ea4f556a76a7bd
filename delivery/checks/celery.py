"""System checks of the site's Celery app: its options, broker, beat and workers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django.core import checks
from django.core.checks import CheckMessage, Error, Warning

from delivery import dispatch
from delivery.buffer import registry
from delivery.checks.settings import check_settings
from delivery.errors import BufferUnavailable

SWEEP_LINE = '"delivery-sweep": {"task": "delivery.sweep", "schedule": 30.0}'


def register_all(tag: str) -> None:
    """Register every check of this module. `check_workers` asks Redis, so it runs only with `--deploy`."""
    checks.register(check_app, tag)
    checks.register(check_broker, tag)
    checks.register(check_workers, tag, deploy=True)


def check_app(app_configs: Sequence[Any] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check the site's Celery app, without connecting to the broker."""
    if check_settings():
        return []
    app = dispatch.site_app()
    if not app.configured:
        hint = (
            "Make one in celery.py beside the settings, and import it in __init__.py there (`from mysite.celery import app`), "
            'as Celery\'s "First steps with Django" has it. Until then payloads above INLINE_LIMIT are refused with busy.'
        )
        return [Warning("No Celery app is imported with the settings.", hint=hint, id="delivery.W001")]
    return list(_check_options(app))


def _check_options(app: dispatch.SiteApp) -> Iterable[CheckMessage]:
    if app.eager:
        yield Warning(
            "Celery is in eager mode (task_always_eager), which does not run delivery's tasks.",
            hint="They are sent by name, to a worker. Run one: manage.py delivery_worker.",
            id="delivery.W002",
        )
    if not app.accepts_json:
        yield Error(
            "The Celery app does not accept JSON, and delivery's tasks are JSON.",
            hint='Add "json" to accept_content.',
            id="delivery.E006",
        )
    for queue in app.unknown_queues:
        yield Error(
            f"The Celery app does not know the queue {queue!r}, which delivery's tasks go to.",
            hint="Add it to task_queues, or name one that is there in DELIVERY['QUEUE'] and DELIVERY['SEAL_QUEUE'].",
            id="delivery.E007",
        )


def check_broker(app_configs: Sequence[Any] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check that the site's Celery app, if there is one, names a broker and schedules the sweep."""
    app = dispatch.site_app()
    found: list[CheckMessage] = []
    if app.configured and not app.broker_urls:
        hint = (
            "CELERY_BROKER_URL = 'redis://127.0.0.1:6379/1', read by app.config_from_object('django.conf:settings', "
            "namespace='CELERY'). Until then payloads above INLINE_LIMIT wait for a RabbitMQ on this machine."
        )
        found.append(Warning("The Celery app names no broker.", hint=hint, id="delivery.W008"))
    for name in app.unknown_transports:
        hint = "redis://HOST:PORT/NUMBER, or redis+socket:///PATH?virtual_host=NUMBER for a Unix socket."
        found.append(Error(f"The Celery app's broker URL begins with {name!r}.", hint=hint, id="delivery.E012"))
    if app.configured and not app.sweeps:
        hint = (
            f"CELERY_BEAT_SCHEDULE = {{{SWEEP_LINE}}}, and run `manage.py delivery_beat`. Silence this where cron runs "
            "`manage.py delivery_sweep`, or where the schedule is kept elsewhere."
        )
        found.append(
            Warning("Celery's beat does not start delivery.sweep: nothing expires.", hint=hint, id="delivery.W012")
        )
    return found


def check_workers(app_configs: Sequence[Any] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check that a worker is alive. Asks Redis."""
    if check_settings():
        return []
    try:
        living = registry.alive_workers()
    except BufferUnavailable as error:
        hint = "DELIVERY['REDIS_URL'] says where it is looked for."
        return [Warning(f"Redis, the chunk buffer, does not answer ({error}).", hint=hint, id="delivery.W004")]
    app = dispatch.site_app()
    if living or not app.configured or app.unknown_queues:
        return []
    queue = dispatch.queue_of(dispatch.STORE)
    hint = f"Start a worker that consumes it: manage.py delivery_worker, or celery worker --queues={queue}."
    return [Warning(f"No live worker takes the tasks of the queue {queue!r}.", hint=hint, id="delivery.W003")]
