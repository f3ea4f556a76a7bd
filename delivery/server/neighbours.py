"""Whether other web processes are alive. While there are none, a new delivery needs no notification through Redis.

Only for speed: a small payload then costs no event of the channel layer. Without this module `presence` notifies the other
processes of every delivery.

A process that believes to be alone remembers the addresses of deliveries since its last look, and notifies a process that has
started meanwhile. A process registers before it looks for pending deliveries of its connections. So it either finds them in
the rows, or is notified.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from delivery.buffer import registry
from delivery.buffer.pubsub import Subscriber
from delivery.errors import BufferUnavailable

logger = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
MOST_UNTOLD = 10_000  # addresses


class Neighbours:
    """What the web process `web` knows of others. `tell`: has others told of addresses. Belongs to its event loop."""

    def __init__(self, web: str, subscriber: Subscriber, tell: Callable[[Iterable[str]], None]) -> None:
        self.announced = asyncio.Event()  # others know of this process, or cannot be told
        self._web = web
        self._subscriber = subscriber
        self._tell = tell
        self._alone = False
        self._heard = 0  # how often somebody said that they have come
        self._untold: dict[str, None] = {}  # since the last look began
        self._before: dict[str, None] = {}  # until it did

    def alone(self, address: str) -> bool:
        """Return whether nobody else has to be told that something arrived for `address`; it is remembered."""
        if self._alone and len(self._untold) < MOST_UNTOLD:
            self._untold[address] = None
            return True
        return False

    async def run(self) -> None:
        """Stay known to others, and look for them. The process owns the task."""
        await self._subscriber.add(registry.WEBS_TOPIC, self._on_wake)
        while True:
            await self._look()
            self.announced.set()
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        self._before, self._untold = self._before | self._untold, {}
        heard = self._heard
        try:
            found = await registry.arenew_web(self._web)
            if not self.announced.is_set():
                await registry.aannounce_web(self._web)
        except BufferUnavailable as error:
            logger.info("%s", error)  # `check_memory` complains
            self._accompanied()
            return
        if found - {self._web} or heard != self._heard:
            self._accompanied()
        else:
            self._alone = True
            self._before = {}  # whoever came later finds it in the rows

    async def leave(self) -> None:
        """Say that this process ends."""
        try:
            await registry.aremove_web(self._web)
        except BufferUnavailable as error:
            logger.info("%s", error)  # its place lapses

    def _accompanied(self) -> None:
        self._alone = False
        untold = self._before | self._untold
        self._before, self._untold = {}, {}
        self._tell(untold)

    def _on_wake(self, message: dict[str, Any]) -> None:
        if message["web"] != self._web:
            self._heard += 1
            self._accompanied()
