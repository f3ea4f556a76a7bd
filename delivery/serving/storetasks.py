"""Asking for runs to be stored: by a task that is at work already, or by one for each, or for a few where many wait.

A task costs its worker, the broker and us the same for one run as for four.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from delivery.buffer import handover
from delivery.transfers import following
from delivery.transfers.storing import StoreOrder

BACKLOG_RUNS = 8  # of one live worker: more than its tasks have begun, and what comes next for each
LINGER_SECONDS = 0.03  # that a run waits for others then: there is enough to do meanwhile
MOST_RUNS = 4


@dataclass(slots=True)
class Order:
    """A run that is to be stored: asked for `attempt` times, to be asked for again at `ask_at` (monotonic seconds)."""

    order: StoreOrder
    checksums: Sequence[int]
    attempt: int = 0
    ask_at: float = 0.0


@dataclass(slots=True, eq=False)
class _Request:
    order: StoreOrder
    done: asyncio.Future[None]


class StoreTasks:
    """The first requests of a web process. `publish` takes the orders of one task; `workers` returns how many live.

    `segment`: no task has more bytes than one run may have, lest others stand by while Storage is slow. Belongs to its
    event loop.
    """

    def __init__(
        self, publish: Callable[[Sequence[StoreOrder]], Awaitable[None]], workers: Callable[[], int], *, segment: int
    ) -> None:
        self._publish = publish
        self._workers = workers
        self._segment = segment
        self._runs: dict[Any, int] = {}
        self._waiting: list[_Request] = []
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def note(self, upload: object, runs: int) -> None:
        """Note how many runs of an upload are to be stored, or are being; 0 forgets it."""
        if runs:
            self._runs[upload] = runs
        else:
            self._runs.pop(upload, None)

    async def ask(self, order: StoreOrder, *, follows: bool) -> None:
        """Have a run stored: by the task that stores the one before it, if it `follows` one and that task takes more.

        Raises `BufferUnavailable`. Cancelling leaves the publishing running to its end.
        """
        if not follows or not await handover.agive(order.payload, order.lease, following.packed(order)):
            await self._ask_for_task(order)

    async def _ask_for_task(self, order: StoreOrder) -> None:
        loop = asyncio.get_running_loop()
        request = _Request(order, loop.create_future())
        request.done.add_done_callback(lambda done: done.cancelled() or done.exception())  # who asked may be gone
        if sum(waiting.order.length for waiting in self._waiting) + order.length > self._segment:
            self._send()
        self._waiting.append(request)
        if len(self._waiting) >= MOST_RUNS or not self._backlog:
            self._send()
        elif self._timer is None:
            self._timer = loop.call_later(LINGER_SECONDS, self._send)
        await asyncio.shield(request.done)

    @property
    def _backlog(self) -> bool:
        return sum(self._runs.values()) >= BACKLOG_RUNS * max(1, self._workers())

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            requests, self._waiting = self._waiting, []
            task = asyncio.create_task(self._publish_all(requests), name="delivery store tasks")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _publish_all(self, requests: Sequence[_Request]) -> None:
        error: Exception | None = None
        try:
            await self._publish([request.order for request in requests])
        except Exception as failure:  # noqa: BLE001 - each who waits gets it
            error = failure
        for request in requests:
            if request.done.done():
                continue
            if error is None:
                request.done.set_result(None)
            else:
                request.done.set_exception(error)
