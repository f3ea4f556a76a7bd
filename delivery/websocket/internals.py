"""The internal names of uvicorn and websockets that our server needs. Without them it runs uvicorn's own protocols."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

#: In the environment, not empty: run uvicorn's own protocols, whatever is installed.
PLAIN = "DELIVERY_PLAIN_UVICORN"

#: Of each class what `uvicorn.py` overrides or uses; attributes of its instances are those that its `__init__` names.
HTTP = (
    *("connection_made", "connection_lost", "data_received", "on_message_begin", "on_headers_complete", "on_body"),
    *("on_message_complete", "handle_websocket_upgrade", "send_400_response", "parser", "transport", "loop", "flow"),
    *("cycle", "scope", "headers", "pipeline", "_start_asgi_task"),
)
SOCKET = (
    *(
        "connection_lost",
        "data_received",
        "receive",
        "send",
        "run_asgi",
        "send_receive_event_to_app",
        "keepalive_timeout",
    ),
    *("handle_text", "handle_bytes", "handle_cont", "handle_ping", "handle_pong", "handle_parser_exception"),
    *(
        "send_keepalive_ping",
        "conn",
        "queue",
        "frames",
        "curr_msg_data_type",
        "writable",
        "read_paused",
        "transport",
        "loop",
    ),
    *(
        "handshake_initiated",
        "handshake_complete",
        "close_sent",
        "disconnected",
        "close_timer",
        "close_timeout",
        "logger",
    ),
    *("ping_timeout", "pong_timer"),
)
PARSER = (
    *("parser", "parser_exc", "reader", "state", "extensions", "current_size", "max_message_size", "handshake_exc"),
    *("close_sent", "debug", "logger", "data_to_send", "fail"),
)


def missing() -> list[str]:
    """Return what stands against our protocols: names that are not there, dotted. Nothing where `uvicorn.py` can be used."""
    if os.environ.get(PLAIN):
        return [f"{PLAIN} is set"]
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
        from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
        from websockets.protocol import Protocol

        from delivery.websocket import uvicorn  # noqa: F401 - what it imports
    except ImportError as error:
        return [str(error)]
    return list(absent({HttpToolsProtocol: HTTP, WebSocketsSansIOProtocol: SOCKET, Protocol: PARSER}))


def absent(wanted: Mapping[type[Any], tuple[str, ...]]) -> Iterator[str]:
    """Yield the names that a class does not have, nor its instances from the beginning."""
    for cls, names in wanted.items():
        there = {*dir(cls), *cls.__init__.__code__.co_names}
        yield from (f"{cls.__module__}.{cls.__qualname__}.{name}" for name in names if name not in there)
