"""Where the consumer is reached: `ws/delivery/`, as a list of patterns and as a complete ASGI application."""

from __future__ import annotations

from typing import Any

from channels.routing import URLRouter
from django.urls import path

from delivery.server.consumer import DeliveryConsumer
from delivery.websocket import handshakes


class WebSocketRouter(URLRouter):  # type: ignore[misc]
    """A URLRouter that answers a handshake for any other path with 404, where Channels' own raises ValueError."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await handshakes.answered(super().__call__)(scope, receive, send)


websocket_urlpatterns: list[Any] = [path("ws/delivery/", DeliveryConsumer.as_asgi(), name="delivery")]
websocket_application: Any = WebSocketRouter(websocket_urlpatterns)
