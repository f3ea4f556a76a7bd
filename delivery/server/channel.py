"""Control events for the connections of one web process: received on one channel of the channel layer, and passed on.

With a channel for each connection, each would need two or three subscriptions, made one after the other; after a restart, a
thousand connections would wait for theirs. So a process has one channel, and joins each group once for all its connections.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from channels.layers import get_channel_layer

from delivery import notify

logger = logging.getLogger(__name__)

Listener = Callable[[dict[str, Any]], Awaitable[None]]

RETRY_SECONDS = 1.0
STOP_SECONDS = 1.0
AT_ONCE = 32  # groups joined or left
FAIR_LISTENERS = 256  # told in a row, until others have their turn
#: The core layer forgets who is in a group after a day (`group_expiry`): who comes later has it joined again.
RENEW_SECONDS = 3600.0


class ControlChannel:
    """The channel of one process, and who listens to which events. Belongs to its event loop."""

    def __init__(self) -> None:
        self._channel: str | None = None
        self._opening = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._listeners: dict[str, Listener] = {}
        self._groups: dict[str, dict[str, Listener]] = {}  # who wants to hear which
        self._groups_of: dict[str, set[str]] = {}
        self._joined: dict[str, float] = {}  # in the channel layer, since when
        self._due: deque[str] = deque()  # groups to be joined or left there
        self._waiting: dict[str, asyncio.Future[None]] = {}  # of `_due`
        self._settling: asyncio.Task[None] | None = None
        self._hearing: asyncio.Task[None] | None = None
        self._stopping = False

    async def open(self, listener: Listener) -> str:
        """Return a name under which `listener` hears what is sent to it. Raises what the channel layer raises."""
        name = notify.channel_of(self._channel or await self._open(), next(self._numbers))
        self._listeners[name] = listener
        self._groups_of[name] = set()
        return name

    async def _open(self) -> str:
        async with self._opening:
            if self._channel is None:
                self._channel = await get_channel_layer().new_channel()
                self._hearing = asyncio.create_task(self._hear(self._channel), name="delivery control events")
            return self._channel

    async def join(self, name: str, group: str) -> None:
        """Have `name` hear a group; returns once it does. Raises what the channel layer raises."""
        self._groups_of[name].add(group)
        self._groups.setdefault(group, {})[name] = self._listeners[name]
        if time.monotonic() - self._joined.get(group, -RENEW_SECONDS) >= RENEW_SECONDS:
            await asyncio.shield(self._settle(group))

    def close(self, name: str) -> None:
        """Have `name` hear nothing more."""
        self._listeners.pop(name, None)
        for group in self._groups_of.pop(name, ()):
            there = self._groups[group]
            del there[name]
            if not there:
                del self._groups[group]
                self._settle(group).add_done_callback(lambda done: done.cancelled() or done.exception())

    async def stop(self) -> None:
        """Leave every group and hear no more; takes a second at most, since the layer may not answer."""
        self._stopping = True
        for group in self._joined:
            self._settle(group).add_done_callback(lambda done: done.cancelled() or done.exception())
        if self._settling is not None:
            await asyncio.wait([self._settling], timeout=STOP_SECONDS)
        for task in (self._settling, self._hearing):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    # -- the channel layer -------------------------------------------------------------------------------------------

    def _settle(self, group: str) -> asyncio.Future[None]:
        """Have a group joined or left, as it is wanted by then; done once that is so."""
        if group not in self._waiting:
            self._waiting[group] = asyncio.get_running_loop().create_future()
            self._due.append(group)
            if self._settling is None or self._settling.done():
                self._settling = asyncio.create_task(self._settle_all(), name="delivery groups")
        return self._waiting[group]

    async def _settle_all(self) -> None:
        while self._due:
            batch = [self._due.popleft() for _ in range(min(AT_ONCE, len(self._due)))]
            # From here on a change of mind is another entry, and comes after this one.
            waiting = [self._waiting.pop(group) for group in batch]
            outcomes = await asyncio.gather(*(self._change(group) for group in batch), return_exceptions=True)
            for future, outcome in zip(waiting, outcomes, strict=True):
                if future.done():
                    continue
                if isinstance(outcome, BaseException):
                    future.set_exception(outcome)
                else:
                    future.set_result(None)

    async def _change(self, group: str) -> None:
        layer = get_channel_layer()
        if group in self._groups and not self._stopping:
            await layer.group_add(group, self._channel)
            self._joined[group] = time.monotonic()
        elif self._joined.pop(group, None) is not None:
            await layer.group_discard(group, self._channel)

    async def _hear(self, channel: str) -> None:
        """Hand on control events. A layer that is away costs events, which may be lost, and no connection."""
        while True:
            try:
                message = await get_channel_layer().receive(channel)
            except Exception:  # a layer raises its own backend's errors
                logger.warning("control events wait: the channel layer fails", exc_info=True)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                await self._hand_on(message)

    async def _hand_on(self, message: dict[str, Any]) -> None:
        for number, listener in enumerate(self._meant(message.get(notify.TARGET)), 1):
            try:
                await listener(message)
            except Exception:  # whatever it is, it is this connection's alone
                logger.exception("control event %s fails", message.get("type"))
            if number % FAIR_LISTENERS == 0:
                await asyncio.sleep(0)

    def _meant(self, target: Any) -> list[Listener]:
        if target is None:  # from the version before: everybody finds out whether it is for them
            return list(self._listeners.values())
        if target in self._listeners:
            return [self._listeners[target]]
        return list(self._groups.get(target, {}).values())
