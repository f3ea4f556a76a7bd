"""Which handles one direction of a connection has used (PROTOCOL section 2).

A message for a handle that is no longer live is dropped. A message for a handle that was never offered is a violation.
This module tells the two apart without remembering every offer.
"""

from __future__ import annotations

from collections import deque

from delivery.errors import ProtocolViolation

# A peer counts up by one, or skips a few. Beyond this many gaps the oldest is forgotten, and its handles count as offered.
REMEMBERED_GAPS = 64


class Handles:
    """The handles that one side has offered, in the rising order that the protocol asks for."""

    def __init__(self) -> None:
        self.highest = 0
        self._skipped: deque[range] = deque(maxlen=REMEMBERED_GAPS)

    def take(self, handle: int) -> None:
        """Note the handle of a new offer. Raises `ProtocolViolation` where it does not exceed all earlier ones."""
        if handle <= self.highest:
            raise ProtocolViolation("handle does not rise")
        if handle > self.highest + 1:
            self._skipped.append(range(self.highest + 1, handle))
        self.highest = handle

    def __contains__(self, handle: int) -> bool:
        return 1 <= handle <= self.highest and not any(handle in gap for gap in self._skipped)

    def check(self, handle: int) -> None:
        """Raise `ProtocolViolation` for a handle that was never offered."""
        if handle not in self:
            raise ProtocolViolation("handle was never offered")
