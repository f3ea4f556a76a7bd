"""The message limits of the ASGI server, for each kind of connection."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from delivery import conf
from delivery.websocket.extensions import LIMIT, message_limit

logger = logging.getLogger(__name__)
_told: set[int] = set()

FIRST_BYTES = 65_536  # of a message before the welcome (PROTOCOL section 1)
SLACK_BYTES = 65_536  # above our own limits: what is a little too large we refuse ourselves


def limit_messages(scope: Mapping[str, Any], size: int) -> None:
    """Have the server take messages of at most `size` bytes on this connection; it refuses larger ones by their heads.

    Another server than `delivery_web` has one limit for all its connections, and this changes nothing.
    """
    extension = (scope.get("extensions") or {}).get(LIMIT)
    if extension is not None:
        extension["set"](size)


def look_at(receive: Any) -> None:
    """Say once in the log that the server's limit is below ours: it closes with a 1009 of its own, often seen as 1006."""
    limit = message_limit(receive)
    options = conf.current()
    wanted = max(options.max_message, options.plain_max_message)
    if limit is None or limit >= wanted or limit in _told:
        return
    _told.add(limit)
    logger.warning(
        "the web server takes messages up to %d bytes, below our limits of %d (MAX_MESSAGE) and %d (PLAIN_MAX_MESSAGE): "
        "raise it to %d (uvicorn: --ws-max-size), or serve with manage.py delivery_web",
        limit,
        options.max_message,
        options.plain_max_message,
        options.server_message_limit(),
    )
