"""What a connection asks as it comes: who it is, what it may use, its place among others, whether something waits for it.

After a restart everybody comes in the same second. Those that ask while a question is under way are asked for together
in the next one: a query for fifty costs about as much as for one, and so does a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from delivery import auth, policy
from delivery.auth import Login, Refusal, Request
from delivery.buffer import pool
from delivery.policy import Quota
from delivery.server.batching import Batcher
from delivery.transfers import deliveries

if TYPE_CHECKING:
    from delivery.server.web_process import Process

PACE_SECONDS = 0.01  # between two questions of a kind while everybody comes; who comes alone is answered at once
LANES = 2  # a site's policy that takes its time over one user does not hold up all others


class Questions:
    """The questions of one web process. All methods belong to its event loop, and cancelling one leaves it in its batch."""

    def __init__(self, process: Process) -> None:
        db = process.db
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
