"""Which Celery workers shut down, as far as this web process was told. One may still report on tasks that it had begun."""

from __future__ import annotations

import time

KEPT_SECONDS = 3_600.0  # longer than any worker takes to finish


class DrainingWorkers:
    """Since when which worker drains, in monotonic seconds. Belongs to one event loop."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def add(self, worker: str) -> None:
        """Note that a worker drains, from the first time on that this is said."""
        now = time.monotonic()
        for one in [one for one, since in self._since.items() if now - since > KEPT_SECONDS]:
            del self._since[one]
        self._since.setdefault(worker, now)

    def discard(self, worker: str) -> None:
        """Note that a worker of this name takes tasks again."""
        self._since.pop(worker, None)

    def since(self, worker: str) -> float | None:
        """Return since when a worker drains, None where it does not."""
        return self._since.get(worker)
