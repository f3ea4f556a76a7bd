"""Where the consumer is reached: `ws/delivery/`, as a list of patterns and as a complete ASGI application."""

from __future__ import annotations

from typing import Any

from channels.routing import URLRouter
from django.urls import path

from delivery.consumers import DeliveryConsumer

websocket_urlpatterns: list[Any] = [path("ws/delivery/", DeliveryConsumer.as_asgi(), name="delivery")]
websocket_application: Any = URLRouter(websocket_urlpatterns)
