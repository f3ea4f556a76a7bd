"""Group commit: rows that arrive while one batch is written are written together in the next.

A transaction costs about the same for one row as for fifty, and SQLite has one writer at a time. Lookups of a new connection
are batched likewise: login, quota, order and pending deliveries. After a restart all clients reconnect in the same second,
and a query for fifty costs about as much as for one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from delivery import auth, policy
from delivery.auth import Login, Refusal, Request
from delivery.buffer import pool
from delivery.policy import Quota
from delivery.server.ports import DatabasePort
from delivery.transfers import deliveries

PACE_SECONDS = 0.01  # between two questions of a kind while everybody comes; who comes alone is answered at once
LANES = 2  # a site's policy that takes its time over one user does not hold up all others
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


class Questions:
    """The questions of one web process. All methods belong to its event loop, and cancelling one leaves it in its batch."""

    def __init__(self, database: DatabasePort) -> None:
        db = database.db
        self._last_order = 0
        self._logins: Batcher[Request, Login | Refusal] = Batcher(
            lambda batch: db(auth.logins_of, batch), "logins", pace_seconds=PACE_SECONDS, lanes=LANES
        )
        self._held: Batcher[Login, bool] = Batcher(lambda batch: db(auth.still_valid, batch), "logins again")
        self._quotas: Batcher[Any, Quota] = Batcher(
            lambda batch: db(_quotas, batch), "quotas", pace_seconds=PACE_SECONDS, lanes=LANES
        )
        self._orders: Batcher[None, int] = Batcher(self._order, "orders", pace_seconds=PACE_SECONDS)
        self._waiting: Batcher[tuple[Any, str], bool] = Batcher(
            lambda batch: db(deliveries.may_wait, batch), "waiting deliveries", pace_seconds=PACE_SECONDS
        )

    async def login_of(self, request: Request) -> Login | Refusal:
        """Return what `auth.login_of` does."""
        return await self._logins.put(request)

    async def holds(self, login: Login) -> bool:
        """Return whether a login would be let in now."""
        return await self._held.put(login)

    async def quota_of(self, user: Any) -> Quota:
        """Return what the site's policy says, or raise what it raises."""
        return await self._quotas.put(user)

    async def order(self) -> int:
        """Return a number above those of all earlier connections: microseconds of Redis's clock.

        Raises `BufferUnavailable`.
        """
        return await self._orders.put(None)

    async def may_wait(self, user: Any, client: str) -> bool:
        """Return whether `deliveries.waiting` is worth asking, for what a client of `user` (its key) is to be offered."""
        return await self._waiting.put((user, client))

    async def _order(self, batch: Sequence[None]) -> range:
        first = max(await pool.aclock(), self._last_order + 1)
        self._last_order = first + len(batch) - 1
        return range(first, first + len(batch))

    async def stop(self) -> None:
        """Return once everything that was asked is answered."""
        for one in (self._logins, self._held, self._quotas, self._orders, self._waiting):
            await one.stop()


def _quotas(users: Sequence[Any]) -> list[Quota | Exception]:
    rules = policy.current()
    return [_quota(rules, user) for user in users]


def _quota(rules: policy.DefaultPolicy, user: Any) -> Quota | Exception:
    try:
        return rules.quota(user)
    except Exception as error:  # noqa: BLE001 - it is this connection's
        return error
