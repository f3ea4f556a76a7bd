"""The states of a transfer on one connection, and the one table of moves between them.

Sender and receiver share the table; this file does not know which of them it serves. A move that the table does not
list is a violation when the peer asks for it and misuse when our own driver does.
"""

from __future__ import annotations

import enum

from delivery.errors import ProtocolViolation, UsageError
from delivery.protocol.codes import ABORT_CODES, FINAL_ABORT_CODES
from delivery.protocol.messages import Abort


class State(enum.StrEnum):
    OFFERED = "offered"  # offered, not answered
    OPEN = "open"  # accepted: chunks and acks flow
    FINISHING = "finishing"  # finish sent or taken: frozen until done
    DONE = "done"
    REJECTED = "rejected"
    ABORTED = "aborted"  # ended for good
    DETACHED = "detached"  # ended on this connection only


class Move(enum.StrEnum):
    ACCEPT = "accept"
    REJECT = "reject"
    FINISH = "finish"
    REWIND = "nack"
    ACK = "ack"
    DONE = "done"
    ABORT = "abort"
    DETACH = "detach"


TRANSITIONS: dict[tuple[State, Move], State] = {
    (State.OFFERED, Move.ACCEPT): State.OPEN,
    (State.OFFERED, Move.REJECT): State.REJECTED,
    (State.OFFERED, Move.DONE): State.DONE,
    (State.OFFERED, Move.ABORT): State.ABORTED,
    (State.OFFERED, Move.DETACH): State.DETACHED,
    (State.OPEN, Move.ACK): State.OPEN,
    (State.OPEN, Move.REWIND): State.OPEN,
    (State.OPEN, Move.FINISH): State.FINISHING,
    (State.OPEN, Move.ABORT): State.ABORTED,
    (State.OPEN, Move.DETACH): State.DETACHED,
    (State.FINISHING, Move.ACK): State.FINISHING,
    (State.FINISHING, Move.REWIND): State.OPEN,
    (State.FINISHING, Move.DONE): State.DONE,
    (State.FINISHING, Move.ABORT): State.ABORTED,
    (State.FINISHING, Move.DETACH): State.DETACHED,
}

LIVE = frozenset({State.OFFERED, State.OPEN, State.FINISHING})


class Machine:
    """What the sending and the receiving side of a transfer have in common: a state that moves by the table."""

    def __init__(self, transfer: str, handle: int) -> None:
        self.transfer = transfer
        self.handle = handle
        self.state = State.OFFERED

    @property
    def live(self) -> bool:
        return self.state in LIVE

    def _remote(self, move: Move) -> None:
        """Move because the peer said so; raises `ProtocolViolation` where the table has no such move."""
        after = TRANSITIONS.get((self.state, move))
        if after is None:
            raise ProtocolViolation(f"{move} of a transfer that is {self.state}")
        self.state = after

    def _local(self, move: Move) -> None:
        """Move because our driver said so; raises `UsageError` where the table has no such move."""
        after = TRANSITIONS.get((self.state, move))
        if after is None:
            raise UsageError(f"cannot {move} a transfer that is {self.state}")
        self.state = after

    def _abort(self, code: str, message: str, *, final: bool, retry_after: float | None) -> Abort:
        if code not in ABORT_CODES or final != (code in FINAL_ABORT_CODES):
            raise UsageError(f"no {'final' if final else 'detaching'} abort is called {code}")
        self._local(Move.ABORT if final else Move.DETACH)
        return Abort(
            transfer=self.transfer, handle=self.handle, code=code, message=message, final=final, retry_after=retry_after
        )
