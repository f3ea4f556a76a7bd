"""Wake-ups over plain pub/sub: small JSON objects on topics, at most once. Waiters also poll."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from typing import Any

import redis
import redis.asyncio.client

from delivery.buffer import exchange, keys
from delivery.buffer.pool import new_subscriber_client

logger = logging.getLogger(__name__)

Listener = Callable[[dict[str, Any]], None]


def publish_command(topic: str, message: dict[str, Any]) -> exchange.Command:
    """Return the command that tells every web process that waits on `topic`. `message`: ids and numbers, JSON."""
    return "PUBLISH", keys.channel(topic), json.dumps(message, separators=(",", ":"))


class Subscriber:
    """The one subscriber connection of a web process. All calls belong to one event loop; listeners must not block."""

    def __init__(self) -> None:
        self._listeners: dict[str, list[Listener]] = {}
        self._pubsub: redis.asyncio.client.PubSub | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="delivery wake-ups")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def add(self, topic: str, listener: Listener) -> None:
        """Call `listener` with every message on `topic` from now on. Where Redis is away, once it is back."""
        listeners = self._listeners.setdefault(topic, [])
        listeners.append(listener)
        if len(listeners) == 1 and self._pubsub is not None:
            with contextlib.suppress(redis.RedisError, OSError):
                await self._pubsub.subscribe(keys.channel(topic))

    async def remove(self, topic: str, listener: Listener) -> None:
        """Stop calling `listener`."""
        listeners = self._listeners.get(topic, [])
        if listener in listeners:
            listeners.remove(listener)
        if not listeners and self._listeners.pop(topic, None) is not None and self._pubsub is not None:
            with contextlib.suppress(redis.RedisError, OSError):
                await self._pubsub.unsubscribe(keys.channel(topic))

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except (redis.RedisError, OSError) as error:
                logger.warning("wake-ups: Redis: %s", type(error).__name__)
            await asyncio.sleep(0.5)

    async def _listen(self) -> None:
        connection = new_subscriber_client()
        pubsub = connection.pubsub(ignore_subscribe_messages=True)
        try:
            # One channel that is always there keeps the connection listening while no topic is.
            topics = set(self._listeners)
            await pubsub.subscribe(keys.channel("all"), *map(keys.channel, topics))
            self._pubsub = pubsub
            if missed := self._listeners.keys() - topics:  # added while we waited
                await pubsub.subscribe(*map(keys.channel, missed))
            prefix = len(keys.channel(""))
            async for message in pubsub.listen():
                self._dispatch(message["channel"].decode()[prefix:], message["data"])
        finally:
            self._pubsub = None
            await pubsub.aclose()  # type: ignore[no-untyped-call,unused-ignore]
            await connection.aclose()

    def _dispatch(self, topic: str, data: bytes) -> None:
        for listener in list(self._listeners.get(topic, ())):
            try:
                listener(json.loads(data))
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                # From another version, in a rolling deploy. It must not end the wake-ups of others.
                logger.warning("wake-up %.100r not understood: %s", data, error)
