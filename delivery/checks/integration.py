"""System checks of what a site connects to the app: policy, Redis, channel layer, web server, storage, database, URLs.

Each finds a missing setting and names it in its hint. They read settings and import what these name, and connect to nothing.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from django.apps import apps
from django.conf import settings as django_settings
from django.contrib.auth import get_user_model
from django.core import checks
from django.core.checks import CheckMessage, Error, Warning
from django.core.files.storage import FileSystemStorage, storages
from django.db import connections, router
from django.urls import NoReverseMatch, reverse
from django.utils.module_loading import import_string

from delivery import conf, policy
from delivery.buffer import pool
from delivery.checks.settings import check_settings

MEMORY_LAYER = "channels.layers.InMemoryChannelLayer"
LAYER = "channels_redis.pubsub.RedisPubSubChannelLayer"
SQLITE = "django.db.backends.sqlite3"


def register_all(tag: str) -> None:
    """Register every check of this module."""
    for check in (check_policy, check_redis_url, check_layer, check_server, check_storage, check_databases, check_urls):
        checks.register(check, tag)


def check_policy(app_configs: Sequence[Any] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check that the site's policy is an importable class that needs no arguments and has every method."""
    path = conf.current().policy
    fault = _policy_fault(path)
    if fault is None:
        return []
    hint = "Write the dotted path of a subclass of delivery.DefaultPolicy, such as 'mysite.policy.Policy'."
    return [Error(f"DELIVERY['POLICY'], {path!r}, cannot be used: {fault}.", hint=hint, id="delivery.E008")]


def _policy_fault(path: object) -> str | None:
    if not isinstance(path, str):
        return None  # delivery.E003 says it
    try:
        found: Any = import_string(path)
    except Exception as error:  # noqa: BLE001 - whatever the site's module raises is what is to be told
        return f"{type(error).__name__}: {error}"
    if not isinstance(found, type):
        return "it is not a class"
    missing = [name for name in vars(policy.DefaultPolicy) if not name.startswith("_") and not hasattr(found, name)]
    if missing:
        return f"it has no {', '.join(missing)}"
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        return f"it cannot be made without arguments ({error})"
    return None


def check_redis_url(app_configs: Sequence[Any] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check that the URL of the chunk buffer can be parsed. Whether Redis answers, `delivery_web` says at its start."""
    url: object = conf.current().redis_url
    fault = pool.url_fault(url) if isinstance(url, str) else None  # else delivery.E003
    if fault is None:
        return []
    hint = "redis://HOST:PORT/NUMBER, rediss://..., or unix:///PATH?db=NUMBER."
    return [Error(f"DELIVERY['REDIS_URL'] cannot be read: {fault}.", hint=hint, id="delivery.E009")]


def check_layer(app_configs: Sequence[Any] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check that there is a channel layer, and that it reaches other processes."""
    backend = getattr(django_settings, "CHANNEL_LAYERS", {}).get("default", {}).get("BACKEND")
    hint = (
        f'CHANNEL_LAYERS = {{"default": {{"BACKEND": "{LAYER}", "CONFIG": {{"hosts": ["redis://127.0.0.1:6379/0"]}}}}}}'
    )
    if backend is None:
        return [Error("CHANNEL_LAYERS has no 'default': no socket could be served.", hint=hint, id="delivery.E010")]
    if backend == MEMORY_LAYER:
        text = "The channel layer is in memory: what other processes and workers say never reaches a socket."
        return [Warning(text, hint=hint, id="delivery.W010")]
    return []


def check_server(app_configs: Sequence[Any] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check the web server's settings before it runs."""
    found: list[CheckMessage] = []
    options = conf.current()
    limit = os.environ.get("UVICORN_WS_MAX_SIZE", "")
    known = limit.isdecimal() and not check_settings()  # else our limits may not be numbers
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


def check_storage(app_configs: Sequence[Any] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check that payloads are not kept in a directory that a web server serves."""
    alias = conf.current().storage
    location = _location_of(alias)
    where = None if location is None else _public_place(location)
    if where is None:
        return []
    hint = (
        'STORAGES["payloads"] = {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": '
        'BASE_DIR / "payloads"}}, beside "default" and "staticfiles", and DELIVERY["STORAGE"] = "payloads".'
    )
    text = f"Payloads are kept in {where}: DELIVERY['STORAGE'] is {alias!r}. They need a private place of their own."
    return [Warning(text, hint=hint, id="delivery.W009")]


def _location_of(alias: object) -> Path | None:
    """Return the directory of a file system storage, None for any other. Does not touch the disk."""
    configured: Any = django_settings.STORAGES
    backend = configured.get(alias, {}).get("BACKEND")
    try:
        kind = import_string(backend) if isinstance(backend, str) else backend
    except ImportError:  # for Django to tell
        return None
    if not (isinstance(kind, type) and issubclass(kind, FileSystemStorage)):
        return None
    return Path(storages[str(alias)].location)  # type: ignore[attr-defined]


def _public_place(location: Path) -> str | None:
    if location == Path.cwd() and not django_settings.MEDIA_ROOT:
        return "the current directory, whichever that is, since MEDIA_ROOT is empty"
    public: dict[str, Any] = {"MEDIA_ROOT": django_settings.MEDIA_ROOT, "STATIC_ROOT": django_settings.STATIC_ROOT}
    for name, root in public.items():
        if root and location.is_relative_to(Path(root).absolute()):
            return f"{name}, which web servers hand out"
    return None


def check_databases(app_configs: Sequence[Any] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check that our tables are in one database, as our transactions need, and that several processes can use SQLite."""
    models = list(apps.get_app_config("delivery").get_models())
    places = {model._meta.label: router.db_for_write(model) for model in models}
    if len(set(places.values())) > 1:
        text = ", ".join(f"{label} in {place!r}" for label, place in places.items())
        hint = "Have the router give one database for the app label 'delivery'."
        return [Error(f"DATABASE_ROUTERS splits our tables: {text}.", hint=hint, id="delivery.E011")]
    (place,) = set(places.values())
    return [*_check_readers(models, place), *_check_sqlite(place)]


def _check_readers(models: Iterable[Any], place: str) -> Iterator[CheckMessage]:
    elsewhere = sorted({router.db_for_read(model) for model in models} - {place})
    if elsewhere:
        yield Warning(
            f"DATABASE_ROUTERS has our tables read in {', '.join(map(repr, elsewhere))}, and written in {place!r}.",
            hint="A copy that lags shows positions and states that are gone: have both answer the same for 'delivery'.",
            id="delivery.W014",
        )
    if (users := router.db_for_write(get_user_model())) != place:
        yield Warning(
            f"Our tables are in the database {place!r}, users in {users!r}: a row of ours can't refer to a user there.",
            hint="Keep the app 'delivery' in the database of the users: DATABASE_ROUTERS.",
            id="delivery.W015",
        )


def _check_sqlite(place: str) -> Iterator[CheckMessage]:
    database: dict[str, Any] = dict(connections.settings.get(place, {}))
    if database.get("ENGINE") != SQLITE:
        return
    options = database.get("OPTIONS", {})
    immediate = str(options.get("transaction_mode", "")).upper() in ("IMMEDIATE", "EXCLUSIVE")
    if not (immediate and "WAL" in str(options.get("init_command", "")).upper()):
        yield Warning(
            f"The SQLite database {place!r} is not set up for several processes that write: 'database is locked'.",
            hint=f'DATABASES["{place}"]["OPTIONS"] = {{"timeout": 20, "transaction_mode": "IMMEDIATE", '
            '"init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL"}',
            id="delivery.W013",
        )


def check_urls(app_configs: Sequence[Any] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check that `delivery.urls` is included: `payload.url()` needs it."""
    if not getattr(django_settings, "ROOT_URLCONF", None):
        return []
    try:
        reverse("delivery-payload", args=["link"])
    except NoReverseMatch:
        hint = 'urlpatterns += [path("delivery/", include("delivery.urls"))]'
        return [Warning("No URL leads to delivery.urls: payload.url() raises.", hint=hint, id="delivery.W011")]
    return []
