"""Backpressure: the server stops reading from a connection that asks for more than can be done, and TCP slows it down.

So one peer can exhaust neither the memory nor the threads that all connections share.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from delivery import conf
from delivery.server.ports import ConnectionPart, ConnectionPort
from delivery.server.upload_offers import ServerUploads
from delivery.server.web_process import WebProcess

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

UNFLUSHED_BYTES = 4 * 1024 * 1024  # of one connection, in this process's memory alone
MOST_QUEUED = 512  # messages to the peer, and tasks, beside those of as many transfers as may live
MOST_QUERIES = 4  # of one connection, running or about to
# Never for long: pongs are not read meanwhile. Past it, each further message waits as long again.
WAIT_SECONDS = 15.0
LOOK_SECONDS = 0.02


class Backpressure(ConnectionPart):
    """The pace of one connection. Belongs to its event loop."""

    def __init__(self, connection: ConnectionPort, process: WebProcess, uploads: ServerUploads) -> None:
        super().__init__(connection)
        self._process = process  # what is seen through outlives its connection
        self._uploads = uploads
        self._queries = asyncio.Semaphore(MOST_QUERIES)
        self._most = MOST_QUEUED + 2 * conf.current().max_live_transfers

    async def db(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what `WebProcess.db` does, a few at a time: who asks for more queues here, and not before everybody else."""
        async with self._queries:
            return await self._process.db(function, *args, **kwargs)

    async def change(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what `WebProcess.change` does, at the same pace."""
        async with self._queries:
            return await self._process.change(function, *args, **kwargs)

    def due(self) -> bool:
        """Return whether to `wait` before more is read."""
        return self._uploads.unflushed() >= UNFLUSHED_BYTES or self._crowded()

    async def wait(self) -> None:
        """Return once more may be read."""
        if self._uploads.unflushed() >= UNFLUSHED_BYTES:
            await self._until_flushed()
        if self._crowded():
            await self._until_calm()

    def _crowded(self) -> bool:
        """Return whether the peer asks faster than it reads the answers, or than we can give them."""
        connection = self._connection
        return not connection.deaf and max(len(connection.core.outbox), connection.busy) > self._most

    async def _until_flushed(self) -> None:
        # Past the deadline the upload itself gives up on the buffer.
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._uploads.below(UNFLUSHED_BYTES // 2)
        except TimeoutError:
            logger.warning("connection of %s: the buffer is slow", self._connection.client)

    async def _until_calm(self) -> None:
        until = time.monotonic() + WAIT_SECONDS
        while self._crowded() and time.monotonic() < until:
            await asyncio.sleep(LOOK_SECONDS)
