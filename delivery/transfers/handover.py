"""The handover of runs: a task that stores quickly takes the next runs of its upload as well.

Only for speed. A message through Celery costs its worker as much as all of our own code for a run, and a run that
is handed over has none. Without this module each run is a task of its own: the same bytes, for about twice the work. A
slow Storage is no reason to keep the other workers out of it: there each run remains a task of its own.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable

from delivery.buffer import exchange, leases
from delivery.errors import BufferUnavailable
from delivery.transfers import segments
from delivery.transfers.segments import StoreRequest

MOST_RUNS = 16  # of one task: its worker has other work, and may have to go
QUICK_SECONDS = 0.1  # that storing a run takes; who hands one over does not wait long then
QUICK_HASHING_SECONDS = 0.2  # and hashing it too


class Handover:
    """Says whether the task that stores `request` takes more runs of its upload. `quick`: the run before was."""

    def __init__(self, request: StoreRequest, *, quick: bool) -> None:
        self._request = request
        self._quick = quick
        self._began = time.monotonic()
        self._open = False

    def opening(self) -> tuple[exchange.Command, ...]:
        """Return what says so in Redis, as the run's work begins."""
        return self._say() if self._quick else ()

    def opening_late(self) -> tuple[exchange.Command, ...]:
        """Return what says so, where nothing did yet, now that the run is stored."""
        return self._say() if not self._open and self._seconds < QUICK_SECONDS else ()

    @property
    def quick(self) -> bool:
        """Whether a run that came behind this one did not wait long."""
        return self._seconds < QUICK_HASHING_SECONDS

    def take(self) -> list[StoreRequest]:
        """Return the runs that were handed over. Never raises: they are asked for again."""
        try:
            taken = leases.take_handed_over(self._request.payload, self._request.lease) if self._open else []
        except BufferUnavailable:
            taken = []
        return [StoreRequest.of(json.loads(request)) for request in taken]

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _say(self) -> tuple[exchange.Command, ...]:
        self._open = True
        return leases.open_handover_commands(self._request.payload, self._request.lease)


def store_all(requests: Iterable[StoreRequest], *, worker: str, draining: Callable[[], bool]) -> None:
    """Store runs, and those that are handed over meanwhile. What one of them raises is raised when all were tried.

    A worker that is `draining` takes no more than what comes behind the first.
    """
    waiting = deque(requests)
    quick, failure = False, None
    done = 0
    while waiting:
        request = waiting.popleft()
        done += 1
        takes = done < MOST_RUNS and not (quick and draining())
        handover = Handover(request, quick=quick)
        try:
            segments.store(request, worker=worker, more=handover if takes else None)
        except Exception as error:  # noqa: BLE001 - raised below
            failure = failure or error
        waiting.extend(handover.take())
        quick = handover.quick
    if failure is not None:
        raise failure


def packed(request: StoreRequest) -> bytes:
    """Return a request as it is handed over."""
    return json.dumps(request.arguments()).encode()
