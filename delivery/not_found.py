"""The answer to an opening handshake for a path that nobody serves: HTTP 404, final, one line in the log.

Channels' `URLRouter` and `ProtocolTypeRouter`, and Django's own application, raise ValueError instead, which a server logs with
a traceback and answers with 500: a client takes that for a fault that passes, and tries again for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

logger = logging.getLogger(__name__)

#: How the ValueErrors begin: of URLRouter, of ProtocolTypeRouter, of Django's ASGIHandler.
NOWHERE = (
    "No route found for path ",
    "No application configured for scope type ",
    "Django can only handle ASGI/HTTP connections, not websocket",
)
MOST_LOGGED = 200  # characters of a path
BODY = b"No WebSocket is served at this path.\n"

Application = Callable[[Any, Any, Any], Awaitable[None]]


def is_nowhere(error: ValueError) -> bool:
    """Return whether it was raised because nobody serves the path of a handshake, before anything was answered."""
    return str(error).startswith(NOWHERE)


async def refuse(scope: Any, send: Any) -> None:
    """Answer a handshake with 404, or with 403 under a server that can't: one without `websocket.http.response`."""
    logger.warning("no WebSocket at %r: 404", scope.get("path", "")[:MOST_LOGGED])
    if "websocket.http.response" in (scope.get("extensions") or {}):
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "websocket.http.response.start", "status": 404, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": BODY})
    else:
        await send({"type": "websocket.close"})


def answered(application: Application) -> Application:
    """Return an application that serves as `application` does, and answers where that has nothing to answer."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        try:
            await application(scope, receive, send)
        except ValueError as error:
            if scope["type"] != "websocket" or not is_nowhere(error):
                raise
            await refuse(scope, send)

    return serve
