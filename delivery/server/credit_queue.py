"""The uploads that wait for credit: one queue per user."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any

from delivery.protocol.receiver import Receiver


class CreditQueue:
    """Uploads that wait, by user. First is the user who has least, and of theirs who waits longest."""

    def __init__(self) -> None:
        self._lines: OrderedDict[Any, OrderedDict[Receiver, None]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __contains__(self, user: Any) -> bool:
        return user in self._lines

    def holds(self, user: Any, receiver: Receiver) -> bool:
        """Return whether an upload of `user` waits."""
        return receiver in self._lines.get(user, ())

    def add(self, user: Any, receiver: Receiver) -> None:
        """Have it wait, behind the others of `user`; where it waits already, it keeps its place."""
        self._lines.setdefault(user, OrderedDict()).setdefault(receiver)

    def remove(self, user: Any, receiver: Receiver) -> None:
        """Have it wait no more."""
        if user in self._lines:
            self._lines[user].pop(receiver, None)
            if not self._lines[user]:
                del self._lines[user]

    def served(self, user: Any) -> None:
        """Let the others go first who have as little as `user`."""
        if user in self._lines:
            self._lines.move_to_end(user)

    def first(self, has: Counter[Any]) -> tuple[Any, Receiver] | None:
        """Return the user whose turn it is, and their upload; None where nobody waits. `has`: bytes of each user."""
        if not self._lines:
            return None
        user = min(self._lines, key=has.__getitem__)
        return user, next(iter(self._lines[user]))

    def anybody_below(self, bound: int, has: Counter[Any]) -> bool:
        """Return whether anybody waits who has less than `bound` bytes."""
        return any(has[user] < bound for user in self._lines)
