"""How far a payload is hashed while it is still being stored: one small record, held by one task at a time.

Expendable like everything here: without it a payload is hashed from its first byte when it is sealed.
"""

from __future__ import annotations

from uuid import UUID

from delivery import conf
from delivery.buffer import keys
from delivery.buffer.clients import client, reporting

HELD = b"held"
HOLD_SECONDS = 10  # longer than a holder may take; one that was killed has lost the record


def take(payload: UUID) -> bytes | None:
    """Take the record, and hold it; `HELD` where another task does, None where there is none. Put it back or drop it."""
    with reporting():
        found: bytes | None = client().set(keys.digest(payload), HELD, ex=HOLD_SECONDS, get=True)
        return found


def put(payload: UUID, record: bytes) -> None:
    """Put the record back."""
    with reporting():
        client().set(keys.digest(payload), record, ex=int(conf.current().buffer_expiry))


def drop(payload: UUID) -> None:
    """Let go without a record."""
    with reporting():
        client().unlink(keys.digest(payload))
