"""How far a payload is hashed while it is still being stored: one small record, held by one task at a time.

Expendable like everything here: without it a payload is hashed from its first byte when it is sealed.
"""

from __future__ import annotations

from uuid import UUID

from delivery import conf
from delivery.buffer import bulk, keys

HELD = b"held"
HOLD_SECONDS = 10  # longer than a holder may take; one that was killed has lost the record


def taking(payload: UUID) -> bulk.Command:
    """Return the command that does what `take` does, and answers what it returns."""
    return "SET", keys.digest(payload), HELD, "EX", HOLD_SECONDS, "GET"


def take(payload: UUID) -> bytes | None:
    """Take the record, and hold it; `HELD` where another task does, None where there is none. Put it back or drop it."""
    found: bytes | None = bulk.run(taking(payload))[0]
    return found


def put(payload: UUID, record: bytes) -> None:
    """Put the record back."""
    bulk.run(("SET", keys.digest(payload), record, "EX", int(conf.current().buffer_expiry)))


def dropping(payload: UUID) -> bulk.Command:
    """Return the command that does what `drop` does."""
    return "UNLINK", keys.digest(payload)


def drop(payload: UUID) -> None:
    """Let go without a record."""
    bulk.run(dropping(payload))
