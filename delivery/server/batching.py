"""Group commit: what comes while one batch is written is written together in the next.

A transaction costs about the same for one row as for fifty, and SQLite takes one writer at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

MOST = 64


class Batcher(Generic[Item, Outcome]):
    """Hands items to `write`, a batch at a time, in the order in which they came. Belongs to one event loop.

    `write` returns the outcome of each; an exception among them concerns that item alone, one that it raises all of them.
    `linger_seconds`: how long the first of a batch waits for others, where nobody is kept waiting by that. `pace_seconds`:
    the least time from one batch to the next; who comes after a pause waits for nobody. `lanes`: how many batches may be
    under way at once, for questions that one of them may hold up.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Item]], Awaitable[Sequence[Outcome | Exception]]],
        name: str,
        *,
        linger_seconds: float = 0.0,
        pace_seconds: float = 0.0,
        lanes: int = 1,
    ) -> None:
        self._write = write
        self._linger_seconds = linger_seconds
        self._pace_seconds = pace_seconds
        self._began = -pace_seconds
        self._lanes = lanes
        self._stopping = False
        self._full = asyncio.Event()  # or no more to wait for
        self._name = name
        self._waiting: deque[tuple[Item, asyncio.Future[Outcome]]] = deque()
        self._last: asyncio.Future[Outcome] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, item: Item) -> asyncio.Future[Outcome]:
        """Have an item written; its outcome is known once its batch has committed, or what writing raised."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._last = future
        if len(self._waiting) >= MOST:
            self._full.set()
        if sum(not task.done() for task in self._tasks) < self._lanes:
            task = asyncio.create_task(self._run(), name=f"delivery {self._name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return future

    async def put(self, item: Item) -> Outcome:
        """Have an item written; return its outcome once its batch has committed, or raise what writing raised.

        Cancelling leaves it in its batch.
        """
        return await self.add(item)

    async def settle(self) -> None:
        """Return once everything that was added by now is written, or was not."""
        if self._last is not None and not self._last.done():
            self._full.set()
            await asyncio.wait([self._last])

    async def _run(self) -> None:
        while self._waiting:
            if self._linger_seconds:
                await self._linger()
            if self._pace_seconds:
                await self._keep_pace()
                if not self._waiting:  # the other lane has taken them
                    return
            batch = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
            try:
                outcomes = await self._write([item for item, _ in batch])
            except Exception as error:  # noqa: BLE001 - whatever it is, each who waits gets it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if future.done():
                    continue
                if isinstance(outcome, Exception):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)

    async def _linger(self) -> None:
        """Wait for company: nobody is waiting for what is in such batches."""
        try:
            async with asyncio.timeout(self._linger_seconds):
                await self._full.wait()
        except TimeoutError:
            pass
        if len(self._waiting) <= MOST and not self._stopping:
            self._full.clear()

    async def _keep_pace(self) -> None:
        loop = asyncio.get_running_loop()
        while (early := self._began + self._pace_seconds - loop.time()) > 0 and not self._stopping:
            await asyncio.sleep(early)
        self._began = loop.time()

    async def stop(self) -> None:
        """Return once everything that was put is written."""
        self._stopping = True
        self._full.set()
        for task in list(self._tasks):
            with contextlib.suppress(asyncio.CancelledError):
                await task
