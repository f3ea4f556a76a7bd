"""A Channels site of one consumer, with the same layer as ours. BENCH_REDIS: its Redis."""

from __future__ import annotations

import os
from typing import Any

import django
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.urls import path
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

settings.configure(
    SECRET_KEY="bench",
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {
                "hosts": [
                    {
                        "address": os.environ["BENCH_REDIS"],
                        "socket_timeout": 30,
                        "retry": Retry(ExponentialBackoff(cap=1, base=0.05), 5),
                    }
                ]
            },
        }
    },
)
django.setup()


class Relay(AsyncWebsocketConsumer):
    """Relays what comes to a group, and what the group gets to the socket."""

    async def connect(self) -> None:
        names = self.scope["url_route"]["kwargs"]
        self.me, self.to = names["me"], names["to"]
        await self.channel_layer.group_add(self.me, self.channel_name)
        await self.accept()

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard(self.me, self.channel_name)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.channel_layer.group_send(self.to, {"type": "relay", "data": bytes_data})

    async def relay(self, event: dict[str, Any]) -> None:
        await self.send(bytes_data=event["data"])


app = ProtocolTypeRouter({"websocket": URLRouter([path("ws/<str:me>/<str:to>", Relay.as_asgi())])})
