"""Chunks of one upload on their way into the buffer: gathered, so that 1 MiB and more goes in one round trip."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from uuid import UUID

from delivery.buffer import chunks
from delivery.buffer.stream import Stream
from delivery.protocol.receiver import Receiver

FLUSH_BYTES = 1024 * 1024  # are worth it; what came since the last round trip began goes along
GATHER_SECONDS = 0.004  # that a chunk waits for more; on a slow line none comes within it


class Gathering:
    """What is in this process's memory alone. `flushed`: chunks below it are in the buffer. Belongs to one event loop.

    `wake` is called when it is time to `flush`.
    """

    def __init__(self, line: Stream, payload: UUID, receiver: Receiver, wake: Callable[[], None]) -> None:
        self.bytes = 0
        self.flushed = receiver.stored
        self._line = line
        self._payload = payload
        self._receiver = receiver
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._pending: deque[memoryview] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._due = False  # what is pending is enough, or has waited long enough
        self._drained = asyncio.Event()
        self._putting: asyncio.Future[None] | None = None

    def __bool__(self) -> bool:
        return bool(self._pending)

    def due(self, *, hurried: bool) -> bool:
        """Return whether to flush now. `hurried`: whatever is there."""
        return bool(self._pending) and (self._due or hurried)

    def add(self, data: memoryview) -> None:
        """Take a chunk's data."""
        self._pending.append(data)
        self.bytes += len(data)
        if self._timer is None or self._enough:
            self._wait_for_more()

    async def flush(self, lease: int) -> None:
        """Put all that waits into the buffer. Raises `BufferUnavailable`; nothing is forgotten then."""
        batch = list(self._pending)
        size = self.bytes
        work = chunks.aput(self._line, self._payload, lease, self._receiver.chunk_size, self.flushed, batch)
        self._putting = asyncio.ensure_future(work)
        self._putting.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(self._putting)
        for _ in batch:
            self._pending.popleft()
        self.bytes -= size
        self.flushed += len(batch)
        self._drained.set()
        self._wait_for_more()

    async def settle(self) -> None:
        """Return once nothing is on its way into the buffer: cancelling who flushed leaves that running."""
        if self._putting is not None:
            await asyncio.wait([self._putting])

    def rewind(self, seq: int) -> None:
        """Forget what is pending: chunks come again from `seq` on."""
        self._pending.clear()
        self.bytes, self.flushed = 0, seq
        self._drained.set()
        self._wait_for_more()

    async def below(self, limit: int) -> None:
        """Wait until less than `limit` bytes are in this process's memory alone."""
        while self.bytes >= limit and self._receiver.live:
            self._drained.clear()
            await self._drained.wait()

    @property
    def _enough(self) -> bool:
        """Whether there is a batch, or nothing more will come: all is here, or the sender waits for credit."""
        receiver = self._receiver
        return self.bytes >= FLUSH_BYTES or receiver.received >= receiver.limit or receiver.received == receiver.chunks

    def _wait_for_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due = None, False
        if self._pending and self._enough:
            self._now()
        elif self._pending:
            self._timer = self._loop.call_later(GATHER_SECONDS, self._now)

    def _now(self) -> None:
        self._due = True
        self._wake()
