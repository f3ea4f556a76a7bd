"""Notifications: wake-ups about data (pub/sub) and control events (channel layer). Both may be lost.

A control event goes to one consumer by its channel name, or to a group: all consumers of a user, or of a group address. All
consumers of a web process share one channel (`server.channel`), so each event names its target.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any
from uuid import UUID

from channels.layers import get_channel_layer

from delivery import conf
from delivery.buffer import exchange, pubsub
from delivery.errors import BufferUnavailable

logger = logging.getLogger(__name__)

WORKERS = "workers"  # the address of the control group that every connection joins: which workers drain

DEADLINE_SECONDS = 5.0
TARGET = "target"  # of a control event: the group, or the name of the consumer, that it is for
_NUMBER = "~"  # allowed in no name of a channel layer's


def waking(payload: UUID, event: str, **numbers: Any) -> exchange.Command:
    """Return the command that does what `wake` does, to be run with others."""
    return pubsub.publish_command(payload.hex, {"event": event, **numbers})


def wake(payload: UUID, event: str, **numbers: Any) -> None:
    """Wake all that wait on a payload. Never raises: each waiter has a deadline and then polls."""
    try:
        exchange.run_commands(waking(payload, event, **numbers))
    except BufferUnavailable as error:
        logger.warning("wake-up %s lost: %s", event, error)


def group_of(address: str) -> str:
    """Return the channel layer's group of an address; hashed, since addresses may hold what a group name may not."""
    digest = hashlib.sha256(f"{conf.current().prefix}:{address}".encode()).hexdigest()[:32]
    return f"delivery.{digest}"


def channel_of(process: str, number: int) -> str:
    """Return the name of a web process's consumer; `process` is the name of the channel that all of them share."""
    return f"{process}{_NUMBER}{number}"


async def atell_group(address: str, event: str, /, **detail: Any) -> None:
    """Send a control event to every consumer that has joined `address`. Never raises."""
    await _send("group", group_of(address), event, detail)


async def atell_channel(channel: str, event: str, /, **detail: Any) -> None:
    """Send a control event to one consumer. Never raises."""
    await _send("channel", channel, event, detail)


def tell_group(address: str, event: str, /, **detail: Any) -> Future[None]:
    """Do what `atell_group` does, from any thread. Returns at once; the future is done when it went out."""
    return _loop().call(_send("group", group_of(address), event, detail))


def tell_channel(channel: str, event: str, /, **detail: Any) -> Future[None]:
    """Do what `atell_channel` does, from any thread. Returns at once; the future is done when it went out."""
    return _loop().call(_send("channel", channel, event, detail))


async def _send(kind: str, target: str, event: str, detail: dict[str, Any]) -> None:
    layer = get_channel_layer()
    if layer is None:
        return
    message = {"type": f"delivery.{event}", TARGET: target, **detail}
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            if kind == "group":
                await layer.group_send(target, message)
            else:
                await layer.send(target.partition(_NUMBER)[0], message)
    except Exception as error:  # noqa: BLE001 - a layer raises its own backend's errors; losing an event is allowed
        logger.warning("control event %s lost: %s", event, type(error).__name__)


class _LoopThread:
    """One event loop in one thread, for as long as its process lives.

    `async_to_sync` would open a connection to the channel layer's Redis for every call (2 ms).
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="delivery control events", daemon=True).start()

    def call(self, coroutine: Coroutine[Any, Any, None]) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)


_lock = threading.Lock()
_thread: _LoopThread | None = None


def _loop() -> _LoopThread:
    global _thread
    with _lock:
        if _thread is None or _thread.pid != os.getpid():  # a forked Celery child has no threads of its parent
            _thread = _LoopThread()
        return _thread
