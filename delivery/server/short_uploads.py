"""The queue for short uploads: of the new uploads that one task can store, only enough begin at once to keep the workers busy.

Only for speed. If all began together, all would end late, and Redis would allocate more memory instead of reusing it. Without
this module `flow_control` shares the budget among all of them.
"""

from __future__ import annotations

from collections.abc import Callable

from delivery.protocol.receiver import Receiver
from delivery.server.credit_queue import CreditQueue

#: So many segments of short uploads are on their way, for each live worker and at least: while two are stored, others come.
SEGMENTS_A_WORKER, LEAST_SEGMENTS = 4, 10


class ShortUploads:
    """The short uploads whose speed is not known yet, and those that wait to begin. All numbers are bytes.

    `segment`: what one task stores at most. `workers` returns how many live.
    """

    def __init__(self, segment: int, workers: Callable[[], int]) -> None:
        self.waiting = CreditQueue()  # for others to end
        self._segment = segment
        self._workers = workers
        self._outstanding = 0
        self._stored = 0  # since the last look
        self._waited = False  # some waited to begin, at the last look
        self._slow = False  # their senders are: nobody waits for them

    def includes(self, receiver: Receiver, stored: int) -> bool:
        """Return whether one task can store what is left of an upload that goes on from byte `stored`."""
        return receiver.size is not None and receiver.size - stored <= self._segment

    def may_begin(self, wanted: int) -> bool:
        """Return whether one more may begin with `wanted` bytes of credit."""
        return self._slow or self._outstanding + wanted <= self._most

    def charge(self, change: int) -> None:
        """Note that those that have begun count for `change` bytes more."""
        self._outstanding += change

    def note_stored(self, length: int) -> None:
        """Note that `length` bytes of those that have begun were stored."""
        self._stored += length

    def look(self, buffered: int) -> None:
        """See whether some wait to begin although little comes of the others; it stays so until more does, or none is new.

        `buffered`: what of those that have begun is in Redis now.
        """
        waited, self._waited = self._waited, bool(self.waiting)
        if self._stored + buffered >= self._most // 4 or not self._outstanding:
            self._slow = False
        elif waited and self._waited:
            self._slow = True
        self._stored = 0

    @property
    def _most(self) -> int:
        return self._segment * max(LEAST_SEGMENTS, SEGMENTS_A_WORKER * self._workers())
