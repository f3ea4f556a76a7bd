"""The settings of a site: `DELIVERY = {...}` in its settings module, typed, with units and defaults.

The only module that reads Django's settings for `DELIVERY`. Values are read live: `override_settings` in a test
just works. Faults are not raised here but reported by `delivery.checks`, so that a site starts with all of them listed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings as django_settings

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

CHUNK_SIZE_MIN = 4 * KIB
CHUNK_SIZE_MAX = 4 * MIB
FRAME_HEADER_BYTES = 12
CONTROL_MESSAGE_BYTES = 64 * KIB


def _option(default: Any, why: str, *, unit: str = "", low: float | None = None, high: float | None = None) -> Any:
    metadata = {"why": why, "unit": unit, "low": low, "high": high}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting of `DELIVERY`; the key is the field's name in capitals."""

    prefix: str = _option(
        "delivery", "Begins every Redis key and pub/sub channel; give each site that shares a Redis its own."
    )
    redis_url: str = _option(
        os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"),
        "The chunk buffer: redis://, rediss:// or unix://. Everything in it is expendable.",
    )
    storage: str = _option("default", "Alias in STORAGES where payload bytes are kept.")
    queue: str | None = _option(None, "Celery queue of the short tasks; None is the app's default queue.")
    seal_queue: str | None = _option(None, "Celery queue of the long sealing task; None is the same as QUEUE.")
    policy: str = _option("delivery.policy.DefaultPolicy", "Dotted path of the class that says who may do what.")
    allowed_origins: tuple[str, ...] | None = _option(
        None,
        "Origins of browsers that may connect, such as https://example.org; None: the site's own, by scheme, host and port, and "
        "CSRF_TRUSTED_ORIGINS.",
    )

    max_message: int = _option(
        2 * MIB, "Largest WebSocket message taken in; above it: 1009.", unit="bytes", low=65_548, high=GIB
    )
    plain_max_message: int = _option(16 * MIB, "Largest message of a plain-mode client.", unit="bytes", low=1, high=GIB)
    chunk_size: int = _option(
        512 * KIB,
        "Largest chunk of an upload, a power of two; less by default where less fits. Deliveries: 256 KiB at most.",
        unit="bytes",
        low=CHUNK_SIZE_MIN,
        high=CHUNK_SIZE_MAX,
    )
    window: int = _option(48 * MIB, "Most unacked bytes of one transfer.", unit="bytes", low=CHUNK_SIZE_MIN, high=GIB)
    buffer_budget: int = _option(
        512 * MIB,
        "Most bytes that the uploads of one web process may have in Redis; at most half of Redis's maxmemory is used.",
        unit="bytes",
        low=CHUNK_SIZE_MAX,
    )
    segment_size: int = _option(
        16 * MIB, "Largest run of bytes that one task stores as one file.", unit="bytes", low=CHUNK_SIZE_MIN, high=GIB
    )
    inline_limit: int = _option(
        64 * KIB,
        "Payloads up to this size live in their database row and need no worker.",
        unit="bytes",
        low=0,
        high=MIB,
    )
    max_payload: int = _option(
        16 * GIB, "Largest payload; above it an offer is refused with too_large.", unit="bytes", low=1
    )
    cache_size: int = _option(
        64 * MIB, "Blocks that one web process keeps for all its recipients.", unit="bytes", low=MIB
    )

    heartbeat: float = _option(
        20.0, "Silence after which the server pings; 2.5 of them end a connection.", unit="seconds", low=0.1, high=300
    )
    retry_initial: float = _option(0.5, "First step of the clients' backoff.", unit="seconds", low=0.01, high=60)
    retry_max: float = _option(10.0, "Longest step of the clients' backoff.", unit="seconds", low=0.01, high=3600)
    drain_spread: float = _option(
        2.0, "Reconnects after a drain are spread over this time.", unit="seconds", low=0, high=600
    )
    drain_grace: float = _option(
        10.0, "Longest time that closing every socket may take on SIGTERM.", unit="seconds", low=0.5, high=3600
    )

    upload_expiry: float = _option(
        72 * 3600.0, "Unfinished transfers expire this long after their last progress.", unit="seconds", low=1
    )
    payload_expiry: float = _option(
        7 * 86400.0, "Payloads for recipients expire this long after completion.", unit="seconds", low=1
    )
    buffer_expiry: float = _option(600.0, "Lifetime of chunks and blocks in Redis.", unit="seconds", low=10, high=86400)
    event_expiry: float = _option(
        30 * 86400.0, "Events of the admin's timeline are kept this long.", unit="seconds", low=60
    )

    max_request_body: int = _option(
        32 * MIB,
        "Largest body of an HTTP request under delivery_web, before Django spools it to disk; above it: 413. 0: no limit.",
        unit="bytes",
        low=0,
    )
    request_body_budget: int = _option(
        256 * MIB,
        "Most bytes that the bodies of all requests of one web process have at once; above it: 503, but for the first "
        "64 KiB of each. 0: no limit.",
        unit="bytes",
        low=0,
    )
    streamed_paths: tuple[str, ...] = _option(
        (), "Path prefixes without these limits: what serves them reads bodies as they come. A Django view does not."
    )

    max_live_transfers: int = _option(
        256, "Live transfers of one connection in each direction.", unit="transfers", low=1
    )
    database_threads: int = _option(
        4, "Threads of one web process that talk to the database.", unit="threads", low=1, high=64
    )

    def effective_seal_queue(self) -> str | None:
        return self.seal_queue or self.queue

    def server_message_limit(self) -> int:
        """Return the limit in bytes for the ASGI server as a whole: well above ours, so that our 1009 comes first.

        Under `delivery_web` our own sockets have less, by who is logged in; under other servers it holds for all of them.
        """
        return 4 * max(self.max_message, self.plain_max_message)


FIELDS: Mapping[str, dataclasses.Field[Any]] = {f.name.upper(): f for f in dataclasses.fields(Settings)}


def given() -> dict[str, Any]:
    """Return the site's `DELIVERY` dictionary as it stands; an empty one where there is none."""
    return dict(getattr(django_settings, "DELIVERY", {}) or {})


def _usual_chunk(settings: Settings) -> int:
    """Return the chunk size in bytes where the site names none: the default, or what fits."""
    bounds: tuple[Any, ...] = (settings.max_message, settings.window)
    if not all(isinstance(bound, int) for bound in bounds):
        return settings.chunk_size  # the system checks say what is wrong
    most = min(settings.chunk_size, settings.max_message - FRAME_HEADER_BYTES, settings.window)
    return 1 << (max(CHUNK_SIZE_MIN, most).bit_length() - 1)


_cached: tuple[dict[str, Any], Settings] | None = None


def current() -> Settings:
    """Return the settings in force. Unknown keys are left to the system checks."""
    global _cached
    options = getattr(django_settings, "DELIVERY", None) or {}
    if _cached is None or _cached[0] != options:
        known = {key.lower(): value for key, value in options.items() if key in FIELDS}
        for key in ("allowed_origins", "streamed_paths"):
            if known.get(key) is not None:
                known[key] = tuple(known[key])
        settings = Settings(**known)
        if "chunk_size" not in known:
            settings = dataclasses.replace(settings, chunk_size=_usual_chunk(settings))
        _cached = (dict(options), settings)
    return _cached[1]
