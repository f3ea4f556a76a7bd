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
    """Hands items to `write`, a batch at a time, in the order in which they came. Belongs to one event loop."""

    def __init__(self, write: Callable[[Sequence[Item]], Awaitable[Sequence[Outcome]]], name: str) -> None:
        self._write = write
        self._name = name
        self._waiting: deque[tuple[Item, asyncio.Future[Outcome]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def put(self, item: Item) -> Outcome:
        """Have an item written; return its outcome once its batch has committed, or raise what writing raised.

        Cancelling leaves it in its batch.
        """
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=f"delivery {self._name}")
        return await future

    async def _run(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
            try:
                outcomes = await self._write([item for item, _ in batch])
            except Exception as error:  # noqa: BLE001 - whatever it is, each who waits gets it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if not future.done():
                    future.set_result(outcome)

    async def stop(self) -> None:
        """Return once everything that was put is written."""
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
