"""Requests to store runs: handed to a running task, published as one task each, or a few per task when many wait.

Only for speed: a task costs its worker, the broker and this process the same for one run as for four. Without this module each
run is published as a task of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from delivery.buffer import leases
from delivery.transfers import handover
from delivery.transfers.segments import StoreRequest

BACKLOG_RUNS = 8  # of one live worker: more than its tasks have begun, and what comes next for each
LINGER_SECONDS = 0.03  # that a run waits for others then: there is enough to do meanwhile
MOST_RUNS = 4


class StoreRequests:
    """The first requests of a web process. `publish` takes the requests of one task; `workers` returns how many live.

    `segment`: no task has more bytes than one run may have, lest others stand by while Storage is slow. Belongs to its
    event loop.
    """

    def __init__(
        self, publish: Callable[[Sequence[StoreRequest]], Awaitable[None]], workers: Callable[[], int], *, segment: int
    ) -> None:
        self._publish = publish
        self._workers = workers
        self._segment = segment
        self._runs: dict[Any, int] = {}
        self._all_runs = 0
        self._waiting: list[StoreRequest] = []  # for one task
        self._asked: asyncio.Future[None] | None = None  # done when that is published
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def note(self, upload: object, runs: int) -> None:
        """Note how many runs of an upload are to be stored, or are being; 0 forgets it."""
        self._all_runs += runs - self._runs.pop(upload, 0)
        if runs:
            self._runs[upload] = runs

    async def ask(self, request: StoreRequest, *, follows: bool) -> None:
        """Have a run stored: by the task that stores the one before it, if it `follows` one and that task takes more.

        Raises `BufferUnavailable`. Cancelling leaves the publishing running to its end.
        """
        if not follows or not await leases.ahand_over(request.payload, request.lease, handover.packed(request)):
            await self._ask_for_task(request)

    async def _ask_for_task(self, request: StoreRequest) -> None:
        if sum(waiting.length for waiting in self._waiting) + request.length > self._segment:
            self._send()
        loop = asyncio.get_running_loop()
        asked = self._asked = self._asked or loop.create_future()
        self._waiting.append(request)
        if len(self._waiting) >= MOST_RUNS or not self._backlog:
            self._send()
        elif self._timer is None:
            self._timer = loop.call_later(LINGER_SECONDS, self._send)
        await asyncio.shield(asked)

    @property
    def _backlog(self) -> bool:
        return self._all_runs >= BACKLOG_RUNS * max(1, self._workers())

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._asked is not None:
            task = asyncio.create_task(self._publish_all(self._waiting, self._asked), name="delivery store tasks")
            self._waiting, self._asked = [], None
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _publish_all(self, requests: Sequence[StoreRequest], asked: asyncio.Future[None]) -> None:
        try:
            await self._publish(requests)
        except Exception as error:  # noqa: BLE001 - each who waits gets it
            asked.set_exception(error)
            asked.exception()  # who asked may be gone
        else:
            asked.set_result(None)
