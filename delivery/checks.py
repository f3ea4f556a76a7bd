"""System checks: `delivery.E...` for what cannot work, `delivery.W...` for what will surprise. Ids are stable.

| id   | says |
|------|------|
| E001 | DELIVERY is not a dictionary |
| E002 | an unknown setting |
| E003 | a value of the wrong type |
| E004 | a value out of its range |
| E005 | settings that contradict each other |
| E006 | the Celery app does not accept JSON |
| E007 | the Celery app does not know our queue |
| E008 | the policy cannot be used |
| E009 | the URL of Redis cannot be read |
| E010 | no channel layer |
| E011 | our tables are in several databases |
| E012 | the broker URL of the Celery app names no broker |
| E101 | a Redis elsewhere without a password |
| E102 | a Redis elsewhere without TLS |
| E103 | DEBUG is on |
| E104 | browsers of every Origin may connect |
| E105 | the web server takes smaller messages than we do |
| E106 | daphne is the web server |
| E107 | the core channel layer under redis-py 8 without a timeout |
| W001 | no Celery app is configured |
| W002 | Celery is in eager mode |
| W003 | nobody consumes our queue |
| W004 | Redis does not answer |
| W005 | the web server takes smaller messages than we do |
| W006 | daphne is the web server |
| W007 | the Celery app accepts more than JSON |
| W008 | the Celery app names no broker |
| W009 | payloads lie where web servers serve files from |
| W010 | the channel layer reaches no other process |
| W011 | `delivery.urls` is not included |
| W012 | beat does not start the sweeper |
| W013 | SQLite is not set up for several processes |
| W014 | our tables are read elsewhere than written |
| W015 | users are in another database than our tables |

W003 and W004 look at what runs, so they run only when asked for: `manage.py check --deploy`. E101 and above, and W007,
are for a site that strangers can reach, and run only then, too; `deployment` has them. `integration` has E008 to E012 and
W008 to W015: what a site connects to the app.
"""

from __future__ import annotations

import difflib
import os
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from django.conf import settings as django_settings
from django.core import checks
from django.core.checks import CheckMessage, Error, Warning

from delivery import conf, deployment, dispatch, integration
from delivery.buffer import registry
from delivery.errors import BufferUnavailable
from delivery.protocol.frames import HEADER_BYTES, is_chunk_size

TAG = "delivery"


def register_all() -> None:
    """Register every check of this module under the tag `delivery`."""
    checks.register(check_settings, TAG)
    checks.register(check_celery, TAG)
    checks.register(check_workers, TAG, deploy=True)
    checks.register(check_server, TAG)
    integration.register_all(TAG)
    deployment.register_all(TAG)


def check_settings(app_configs: Sequence[Any] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check each value of `DELIVERY` by itself, then those that depend on each other."""
    given = getattr(django_settings, "DELIVERY", {})
    if not isinstance(given, dict):
        return [Error(f"DELIVERY is a {type(given).__name__}, expected a dictionary.", id="delivery.E001")]
    found = [message for key, value in given.items() for message in _check_value(key, value)]
    return found or list(_check_together(conf.current()))


def _check_value(key: str, value: Any) -> Iterable[CheckMessage]:
    field = conf.FIELDS.get(key)
    if field is None:
        near = difflib.get_close_matches(str(key), conf.FIELDS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "See docs/reference/settings.md for all of them."
        yield Error(f"DELIVERY has no setting {key!r}.", hint=hint, id="delivery.E002")
        return
    expected = typing.get_type_hints(conf.Settings)[field.name]
    if not _fits(value, expected):
        name = getattr(expected, "__name__", None) if isinstance(expected, type) else str(expected)
        yield Error(
            f"DELIVERY[{key!r}] is a {type(value).__name__}, expected {name}.", hint=_hint(field), id="delivery.E003"
        )
        return
    low, high = field.metadata["low"], field.metadata["high"]
    if (low is not None and value < low) or (high is not None and value > high):
        wanted = f"at least {low}" if high is None else f"{low} to {high}"
        yield Error(f"DELIVERY[{key!r}] is {value}, expected {wanted}.", hint=_hint(field), id="delivery.E004")


def _hint(field: Any) -> str:
    unit = f" (in {field.metadata['unit']})" if field.metadata["unit"] else ""
    return f"{field.metadata['why']}{unit} Default: {field.default!r}."


def _fits(value: Any, expected: Any) -> bool:
    if isinstance(expected, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(expected))
    if expected is type(None):
        return value is None
    if typing.get_origin(expected) is tuple:
        return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    if expected is float:
        return type(value) in (int, float)
    return type(value) is expected


def _check_together(options: conf.Settings) -> Iterable[CheckMessage]:
    if not is_chunk_size(options.chunk_size):
        yield Error(
            f"DELIVERY['CHUNK_SIZE'] is {options.chunk_size}, expected a power of two.",
            hint="Powers of two from 4096 to 4194304 bytes.",
            id="delivery.E004",
        )
    if options.chunk_size + HEADER_BYTES > options.max_message:
        yield Error(
            "DELIVERY['CHUNK_SIZE'] and a header of 12 bytes do not fit into DELIVERY['MAX_MESSAGE'].",
            hint=f"Raise MAX_MESSAGE to {options.chunk_size + HEADER_BYTES} bytes or more.",
            id="delivery.E005",
        )
    if options.window < options.chunk_size:
        yield Error(
            "DELIVERY['WINDOW'] is smaller than DELIVERY['CHUNK_SIZE']: no chunk could ever be sent.",
            id="delivery.E005",
        )
    if options.storage not in django_settings.STORAGES:
        yield Error(
            f"DELIVERY['STORAGE'] is {options.storage!r}, which is not in STORAGES.",
            hint=f"STORAGES has {', '.join(sorted(django_settings.STORAGES))}.",
            id="delivery.E005",
        )


def check_celery(app_configs: Sequence[Any] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check the site's Celery app. Asks no broker."""
    if check_settings():
        return []
    app = dispatch.site_app()
    if not app.configured:
        hint = (
            "Make one in celery.py beside the settings, and import it in __init__.py there (`from mysite.celery import app`), "
            'as Celery\'s "First steps with Django" has it. Until then payloads above INLINE_LIMIT are refused with busy.'
        )
        return [Warning("No Celery app is imported with the settings.", hint=hint, id="delivery.W001")]
    return list(_check_app(app))


def _check_app(app: dispatch.SiteApp) -> Iterable[CheckMessage]:
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


def check_workers(app_configs: Sequence[Any] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Look whether a worker lives. Asks Redis, hence only with `check --deploy`."""
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


def check_server(app_configs: Sequence[Any] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Look at the web server, as far as it can be told before it runs."""
    found: list[CheckMessage] = []
    options = conf.current()
    limit = os.environ.get("UVICORN_WS_MAX_SIZE", "")
    known = limit.isdecimal() and not check_settings()  # else ours may be no numbers
    if known and int(limit) < max(options.max_message, options.plain_max_message):
        found.append(
            Warning(
                f"UVICORN_WS_MAX_SIZE is {limit} bytes: uvicorn closes with its own 1009 before our limits of "
                f"{options.max_message} (MAX_MESSAGE) and {options.plain_max_message} (PLAIN_MAX_MESSAGE) are reached.",
                hint=f"Set it to {options.server_message_limit()}, or use `manage.py delivery_web`, which does.",
                id="delivery.W005",
            )
        )
    if "daphne" in django_settings.INSTALLED_APPS:
        found.append(
            Warning(
                "daphne is in INSTALLED_APPS: it takes whatever a slow reader leaves into memory, and closes without "
                "the codes 1001 and 1009.",
                hint="Serve with `manage.py delivery_web` (uvicorn), or silence this where daphne is for development only.",
                id="delivery.W006",
            )
        )
    return found
