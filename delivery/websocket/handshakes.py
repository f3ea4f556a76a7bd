"""Answers to opening handshakes without a consumer: 404 for an unknown path, 503 while the channel layer fails.

Channels' `URLRouter` and `ProtocolTypeRouter`, and Django's own application, raise ValueError for a path that is not theirs. A
server logs that with a traceback and answers with 500, which a client takes for a temporary fault and retries for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

logger = logging.getLogger(__name__)

#: How the ValueErrors begin: of URLRouter, of ProtocolTypeRouter, of Django's ASGIHandler.
NOWHERE = (
    "No route found for path ",
    "No application configured for scope type ",
    "Django can only handle ASGI/HTTP connections, not websocket",
)
MOST_LOGGED = 200  # characters of a path

Application = Callable[[Any, Any, Any], Awaitable[None]]


def is_nowhere(error: ValueError) -> bool:
    """Return whether it was raised because nobody serves the path of a handshake, before anything was answered."""
    return str(error).startswith(NOWHERE)


async def refuse(scope: Any, send: Any, status: HTTPStatus, text: str) -> None:
    """Answer a handshake with an HTTP status; with 403 under a server that knows no `websocket.http.response`."""
    if "websocket.http.response" in (scope.get("extensions") or {}):
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "websocket.http.response.start", "status": int(status), "headers": headers})
        await send({"type": "websocket.http.response.body", "body": f"{text}\n".encode()})
    else:
        await send({"type": "websocket.close"})


async def refuse_path(scope: Any, send: Any) -> None:
    """Answer a handshake for a path that nobody serves: final, and one line in the log."""
    logger.warning("no WebSocket at %r: 404", scope.get("path", "")[:MOST_LOGGED])
    await refuse(scope, send, HTTPStatus.NOT_FOUND, "No WebSocket is served at this path.")


async def refuse_for_now(scope: Any, send: Any, error: Exception) -> None:
    """Answer a handshake while the channel layer raises: clients come back, and one line is in the log."""
    logger.warning("the channel layer does not answer (%s): 503", type(error).__name__)
    await refuse(scope, send, HTTPStatus.SERVICE_UNAVAILABLE, "No socket can be served just now.")


def answered(application: Application) -> Application:
    """Return an application that serves as `application` does, and answers where that has nothing to answer."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        try:
            await application(scope, receive, send)
        except ValueError as error:
            if scope["type"] != "websocket" or not is_nowhere(error):
                raise
            await refuse_path(scope, send)

    return serve
