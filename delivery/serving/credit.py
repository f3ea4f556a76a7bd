"""Credit of all uploads of a web process: together they never have more in Redis than the budget.

While everybody's window fits, everybody has it. Beyond, each gets an equal share; and where not even one chunk each
fits, credit goes round: who waits longest is next, who has used theirs up waits again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from delivery.protocol.receiver import Receiver


@dataclass(slots=True)
class _Account:
    """One upload: what it may still put into Redis, in bytes, and how its session is told that this grew."""

    changed: Callable[[], None]
    outstanding: int = 0


class CreditLedger:
    """The budget of one web process, in bytes. Belongs to its event loop."""

    def __init__(self, budget: int, window: int) -> None:
        self.budget = budget
        self._window = window
        self._total = 0
        self._accounts: dict[Receiver, _Account] = {}
        self._waiting: OrderedDict[Receiver, None] = OrderedDict()

    def window(self) -> int:
        """Return the window in bytes of one more upload."""
        return min(self._window, self.budget // (len(self._accounts) + 1))

    def fits(self, receiver: Receiver, stored: int) -> bool:
        """Return whether an upload that goes on from byte `stored` gets credit at once, or has to wait for it."""
        wanted = max(receiver.chunk_size, self.window())
        if receiver.size is not None:
            wanted = min(wanted, receiver.size - stored)
        return not self._waiting and self._total + wanted <= self.budget

    def join(self, receiver: Receiver, changed: Callable[[], None], *, waits: bool) -> None:
        """Count an upload that was accepted; `waits`: without credit, for want of room."""
        self._accounts[receiver] = _Account(changed)
        if waits:
            self._waiting[receiver] = None
        self._count(receiver)

    def leave(self, receiver: Receiver) -> None:
        """Count an upload no more."""
        account = self._accounts.pop(receiver, None)
        if account is not None:
            self._total -= account.outstanding
            self._waiting.pop(receiver, None)
            self._hand_out()

    def waits(self, receiver: Receiver) -> bool:
        """Return whether an upload waits for room."""
        return receiver in self._waiting

    def moved(self, receiver: Receiver) -> None:
        """Note that chunks of an upload were stored; what that freed is handed out."""
        if receiver not in self._accounts:
            return
        share = min(self._window, self.budget // len(self._accounts))
        receiver.resize(share)
        self._count(receiver)
        if self._waiting:
            self._yield_turn(receiver)
        elif receiver.held and self._total + share <= self.budget:
            receiver.release()
        self._hand_out()

    def _yield_turn(self, receiver: Receiver) -> None:
        """Give no more credit to one who has had some while others wait; back in the queue once it is used up."""
        receiver.hold()
        if receiver.stored >= receiver.limit and receiver not in self._waiting:
            self._waiting[receiver] = None

    def _hand_out(self) -> None:
        while self._waiting:
            receiver = next(iter(self._waiting))
            share = max(receiver.chunk_size, min(self._window, self.budget // len(self._accounts)))
            if self._total + share > self.budget and self._total > 0:
                return
            del self._waiting[receiver]
            receiver.resize(share)
            receiver.release()
            account = self._accounts[receiver]
            account.outstanding += share
            self._total += share
            account.changed()

    def _count(self, receiver: Receiver) -> None:
        account = self._accounts[receiver]
        limit = receiver.limit if receiver.chunks is None else min(receiver.limit, receiver.chunks)
        outstanding = max(0, limit - receiver.stored) * receiver.chunk_size
        self._total += outstanding - account.outstanding
        account.outstanding = outstanding
