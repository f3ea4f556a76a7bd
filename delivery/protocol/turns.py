"""Fair turns: several transfers share one connection, chunk by chunk, so that a small one passes between a large one's."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from delivery.protocol.sender import Sender


class Turns:
    """The order in which live senders take their turns."""

    def __init__(self) -> None:
        self._order: deque[int] = deque()

    def join(self, handle: int) -> None:
        """Let a new sender take part, before all others: a small payload is not to wait for a large one's chunk."""
        self._order.appendleft(handle)

    def leave(self, handle: int) -> None:
        self._order.remove(handle)

    def take(self, senders: Mapping[int, Sender]) -> Sender | None:
        """Return whose turn it is: a sender that has a chunk or `finish` to send. Each comes after all others did."""
        for handle in self._order:  # a finish is short, and what it ends waits for it
            if senders[handle].finish_due():
                return senders[handle]
        for _ in range(len(self._order)):
            sender = senders[self._order[0]]
            self._order.rotate(-1)
            if sender.chunk_due():
                return sender
        return None
