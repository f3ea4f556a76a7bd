"""System checks of a public site, for `manage.py check --deploy`.

They read only settings and the environment. They ask no running service.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any
from urllib.parse import SplitResult, urlsplit

from django.conf import settings as django_settings
from django.core import checks
from django.core.checks import CheckMessage, Error, Warning

from delivery import conf, dispatch

CORE_LAYER = "channels_redis.core.RedisChannelLayer"
JSON = {"json", "application/json"}


def register_all(tag: str) -> None:
    """Register every check of this module for `check --deploy`."""
    for check in (check_redis, check_site, check_server, check_layer, check_celery):
        checks.register(check, tag, deploy=True)


def check_redis(app_configs: Sequence[Any] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check that every Redis on another machine needs a password and uses TLS."""
    return [message for name, url in _redis_urls() for message in _check_url(name, url)]


def _redis_urls() -> Iterator[tuple[str, str]]:
    yield "DELIVERY['REDIS_URL']", conf.current().redis_url
    for alias, layer in getattr(django_settings, "CHANNEL_LAYERS", {}).items():
        for host in layer.get("CONFIG", {}).get("hosts", ()):
            yield f"CHANNEL_LAYERS[{alias!r}]", _layer_url(host)
    for url in dispatch.site_app().broker_urls:
        yield "the broker of the Celery app", url


def _layer_url(host: Any) -> str:
    """Return the URL of one of a channel layer's hosts: a URL, a pair of host and port, or a dictionary with either."""
    options = host if isinstance(host, dict) else {"address": host}
    address = options.get("address", "")
    if not isinstance(address, str):
        login = ":password@" if options.get("password") else ""
        return f"redis://{login}{address[0]}:{address[1]}"
    if options.get("password") and "@" not in address:
        return address.replace("://", "://:password@", 1)
    return address


def _check_url(name: str, url: str) -> Iterable[CheckMessage]:
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss") or _is_here(parts):
        return
    if not parts.password:
        yield Error(
            f"{name} names a Redis at {parts.hostname} without a password: whoever reaches it reads and changes payloads.",
            hint="Set `requirepass` or an ACL there, and write redis[s]://:PASSWORD@HOST.",
            id="delivery.E101",
        )
    if parts.scheme != "rediss":
        yield Error(
            f"{name} names a Redis at {parts.hostname} without TLS: payloads cross the network in the clear.",
            hint="Write rediss://, or reach it through a tunnel that ends on this machine.",
            id="delivery.E102",
        )


def _is_here(parts: SplitResult) -> bool:
    host = parts.hostname or "localhost"
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_site(app_configs: Sequence[Any] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check that DEBUG is off, and that neither hosts nor Origins hold `*`.

    An Origin must equal the scheme and host of the handshake. `ALLOWED_HOSTS` with `*` accepts any host name that
    somebody points at this server, and so the pages of that name. `ALLOWED_ORIGINS` is compared literally: `*` in it
    matches no Origin.
    """
    found: list[CheckMessage] = []
    if django_settings.DEBUG:
        found.append(Error("DEBUG is on: error pages show settings and data.", id="delivery.E103"))
    origins = conf.current().allowed_origins
    hint = "List the site's own: DELIVERY['ALLOWED_ORIGINS'] = ['https://example.org']."
    if origins is None and "*" in django_settings.ALLOWED_HOSTS:
        text = "ALLOWED_HOSTS has '*': pages of any host name that leads to this server may connect."
        found.append(Error(text, hint=hint, id="delivery.E104"))
    if "*" in (origins or ()):
        text = "DELIVERY['ALLOWED_ORIGINS'] has '*', which matches no Origin: it is no wildcard."
        found.append(Error(text, hint=hint, id="delivery.E104"))
    return found


def check_server(app_configs: Sequence[Any] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check the web server's settings before it runs."""
    found: list[CheckMessage] = []
    options = conf.current()
    limit = os.environ.get("UVICORN_WS_MAX_SIZE", "")
    if limit.isdecimal() and int(limit) < max(options.max_message, options.plain_max_message):
        found.append(
            Error(
                f"UVICORN_WS_MAX_SIZE is {limit} bytes, less than a message that we take.",
                hint=f"Set it to {options.server_message_limit()}, or use `manage.py delivery_web`, which does.",
                id="delivery.E105",
            )
        )
    if "daphne" in django_settings.INSTALLED_APPS:
        hint = "Serve with `manage.py delivery_web` (uvicorn), and have daphne in the development settings alone."
        found.append(
            Error("daphne, which is for development only, is in INSTALLED_APPS.", hint=hint, id="delivery.E106")
        )
    return found


def check_layer(app_configs: Sequence[Any] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check for the core channel layer under redis-py 8, whose default socket timeout ends its blocking reads."""
    if int(version("redis").partition(".")[0]) < 8:
        return []
    return [
        Error(
            f"CHANNEL_LAYERS[{alias!r}] is the core layer, without socket_timeout: under redis-py 8 idle sockets die.",
            hint="Use channels_redis.pubsub.RedisPubSubChannelLayer, or hosts with socket_timeout=30 (channels_redis#422).",
            id="delivery.E107",
        )
        for alias, layer in getattr(django_settings, "CHANNEL_LAYERS", {}).items()
        if layer.get("BACKEND") == CORE_LAYER and not _has_timeout(layer.get("CONFIG", {}))
    ]


def _has_timeout(config: dict[str, Any]) -> bool:
    hosts = config.get("hosts", ())
    return bool(hosts) and all(isinstance(host, dict) and host.get("socket_timeout", 0) > 5 for host in hosts)


def check_celery(app_configs: Sequence[Any] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check that workers accept only JSON. Pickle and YAML let anyone who reaches the broker run code."""
    more = sorted(set(dispatch.site_app().accepts) - JSON)
    if not more:
        return []
    hint = "CELERY_ACCEPT_CONTENT = ['json']; delivery's tasks need no more."
    return [Warning(f"The Celery app accepts more than JSON: {', '.join(more)}.", hint=hint, id="delivery.W007")]
