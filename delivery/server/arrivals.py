"""Large messages on a site's own socket on their way in: stored beside it, then handed over in the socket's own order.

A Channels consumer handles one thing after the other. Storing is not one of them, so that small messages pass
meanwhile; what is stored comes back through the consumer's `receive`, and no two of its handlers ever run at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from delivery.errors import BufferUnavailable, Refused, TransferAborted
from delivery.server import whole
from delivery.server.web_process import Process
from delivery.transfers import outcomes

logger = logging.getLogger(__name__)

ARRIVED = "delivery.large_arrived"  # names the consumer's handler
INTERNAL = "internal"
Receive = Callable[[], Awaitable[dict[str, Any]]]


class Arrivals:
    """The large messages of one socket. One is stored at a time; who brings the next one waits for it."""

    def __init__(self, process: Process, receive: Receive) -> None:
        self._process = process
        self._receive = receive
        self._reading: asyncio.Future[dict[str, Any]] | None = None  # what comes next from the socket
        self._arriving: asyncio.Future[dict[str, Any]] | None = None  # and what arrives next
        self._storing: asyncio.Task[None] | None = None
        self._arrived: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def receive(self) -> dict[str, Any]:
        """Return what comes next: a message of the socket, or that a large one has arrived. An ASGI `receive`."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._receive())
        if self._arriving is None:
            self._arriving = asyncio.ensure_future(self._arrived.get())
        await asyncio.wait({self._reading, self._arriving}, return_when=asyncio.FIRST_COMPLETED)
        if self._arriving.done():
            arriving, self._arriving = self._arriving, None
            return arriving.result()
        reading, self._reading = self._reading, None
        return reading.result()

    async def put(self, user: Any, data: bytes, content_type: str) -> None:
        """Begin to store a message of `user`; waits for the one before it: TCP slows the peer down."""
        if self._storing is not None:
            await asyncio.wait({self._storing})
        self._storing = asyncio.create_task(self._store(user, data, content_type), name="delivery large message")

    async def _store(self, user: Any, data: bytes, content_type: str) -> None:
        try:
            finished = await whole.store(self._process, user, data, content_type=content_type)
        except (Refused, TransferAborted) as refused:
            self._put(code=refused.code)
        except BufferUnavailable:
            self._put(code="busy")
        except Exception:
            logger.exception("large message not stored")
            self._put(code=INTERNAL)
        else:
            self._put(payload=finished.payload)

    def _put(self, *, payload: UUID | None = None, code: str = "") -> None:
        self._arrived.put_nowait({"type": ARRIVED, "payload": payload, "code": code})

    def handled(self) -> None:
        """Note that the consumer is through with one that arrived."""
        self._arrived.task_done()

    async def settle(self) -> None:
        """Return once nothing is being stored and everything that arrived is handled."""
        if self._storing is not None:
            await asyncio.wait({self._storing})
        await self._arrived.join()

    async def end(self) -> None:
        """Let go: the socket is gone. What nobody was handed is not kept."""
        for task in (self._reading, self._storing, self._arriving):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        left = [self._arrived.get_nowait() for _ in range(self._arrived.qsize())]
        if self._arriving is not None and not self._arriving.cancelled():
            left.append(self._arriving.result())
        payloads = [message["payload"] for message in left if message["payload"] is not None]
        cancelling = (self._process.db(outcomes.cancel_payload, payload, by="") for payload in payloads)
        for payload, outcome in zip(payloads, await asyncio.gather(*cancelling, return_exceptions=True), strict=True):
            if isinstance(outcome, Exception):
                logger.error("payload %s is left to expire", payload, exc_info=outcome)
