"""The Celery workers that are alive, and those that shut down, as one web process knows them."""

from __future__ import annotations

import logging
import time

from delivery import dispatch
from delivery.buffer import registry
from delivery.errors import BufferUnavailable

logger = logging.getLogger(__name__)

FRESH_SECONDS = 2.0
COMPLAIN_SECONDS = 60.0
DRAINING_KEPT_SECONDS = 3_600.0  # longer than any worker takes to finish


class Workers:
    """Belongs to one event loop. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._alive: frozenset[str] = frozenset()
        self._asked_at = -FRESH_SECONDS
        self._complained_at = -COMPLAIN_SECONDS
        self._draining_since: dict[str, float] = {}

    async def alive(self) -> frozenset[str]:
        """Return the ids of live workers, at most 2 s old; nobody where Redis does not answer."""
        if time.monotonic() - self._asked_at >= FRESH_SECONDS:
            try:
                self._alive = await registry.aalive_workers()
            except BufferUnavailable as error:
                logger.warning("%s", error)
                self._alive = frozenset()
            self._asked_at = time.monotonic() if self._alive else -FRESH_SECONDS
            if not self._alive:
                self._complain()
        return self._alive

    def count(self) -> int:
        """Return how many workers lived when last asked."""
        return len(self._alive)

    def note_draining(self, worker: str) -> None:
        """Note that a worker drains, from the first time on that this is said. It may still report on tasks that it had begun."""
        self._ask_again()
        now = time.monotonic()
        for one in [one for one, since in self._draining_since.items() if now - since > DRAINING_KEPT_SECONDS]:
            del self._draining_since[one]
        self._draining_since.setdefault(worker, now)

    def note_ready(self, worker: str) -> None:
        """Note that a worker of this name takes tasks again."""
        self._ask_again()
        self._draining_since.pop(worker, None)

    def draining_since(self, worker: str) -> float | None:
        """Return since when a worker drains, None where it does not."""
        return self._draining_since.get(worker)

    def _ask_again(self) -> None:
        """Look for live workers at the next question: one came or went."""
        self._asked_at = -FRESH_SECONDS

    def _complain(self) -> None:
        """Say in the log, once a minute at most, that there is no worker."""
        now = time.monotonic()
        if now - self._complained_at >= COMPLAIN_SECONDS:
            self._complained_at = now
            queue = dispatch.queue_of(dispatch.STORE)
            logger.warning("no live worker takes the tasks of the queue %r: start manage.py delivery_worker", queue)
