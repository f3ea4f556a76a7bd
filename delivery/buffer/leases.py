"""Short-lived claims on work, so that one task does each piece of work. Every claim expires by its TTL.

- A *marker* says that a piece of work was requested. Nobody requests the same work while the marker exists.
- A *digest record* says how far a payload is hashed. One task at a time holds it. Without it a payload is hashed from
  its first byte when it is sealed.
- A *handover list* exists while a task takes more runs of an upload. It exists for speed: a run on the list saves one
  message through Celery, about 2 ms. Without it, each run is published as a task of its own.

The fencing number that guards rows and chunk keys (also called lease) is not kept here but in the transfer's row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from delivery import conf
from delivery.buffer import exchange, keys
from delivery.buffer.pool import aclient, client, reporting

FIRST_SECONDS = 2.0
LONGEST_SECONDS = 60.0
HANDOVER_SECONDS = 10  # a list that its task has not renewed for this long is dropped: the task was probably killed
MOST_HANDED_OVER = 10_000  # more than any list has: a window holds a few runs
DIGEST_HELD = b"held"
DIGEST_HELD_SECONDS = 10  # longer than a holder may take; the record of one that was killed is lost
_OPEN = b""


# -- markers ---------------------------------------------------------------------------------------------------------


def marker_seconds(attempt: int) -> float:
    """Return how long the marker of the `attempt`-th request (zero-based) holds: it doubles up to 60 s."""
    return min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(attempt, 10))


async def aclaim(name: str, *, attempt: int) -> bool:
    """Set the marker `name` unless it is set; return whether the caller may ask for the work now."""
    with reporting():
        return bool(await _set_marker(aclient(), name, marker_seconds(attempt)))


async def aclaim_first(names: Sequence[str]) -> list[bool]:
    """Do what `aclaim` does for the first request of each of `names`, in one round trip."""
    with reporting():
        pipe = aclient().pipeline(transaction=False)
        for name in names:
            _set_marker(pipe, name, marker_seconds(0))
        return [bool(claimed) for claimed in await pipe.execute()]


def claim(name: str, *, seconds: float) -> bool:
    """Do what `aclaim` does, in a thread, for `seconds`."""
    with reporting():
        return bool(_set_marker(client(), name, seconds))


def _set_marker(target: Any, name: str, seconds: float) -> Any:
    """Set a marker that is not set, by a client or in a pipeline."""
    return target.set(keys.marker(name), "1", nx=True, px=int(seconds * 1000))


def clear_command(name: str) -> exchange.Command:
    """Return the command that does what `clear` does."""
    return "UNLINK", keys.marker(name)


def clear(name: str) -> None:
    """Remove a marker: its work has begun and may be asked for again."""
    exchange.run_commands(clear_command(name))


# -- digest records --------------------------------------------------------------------------------------------------


def hold_digest_command(payload: UUID) -> exchange.Command:
    """Return the command that does what `hold_digest` does; its reply is what `hold_digest` returns."""
    return "SET", keys.digest(payload), DIGEST_HELD, "EX", DIGEST_HELD_SECONDS, "GET"


def hold_digest(payload: UUID) -> bytes | None:
    """Hold the digest record, and return it: None where there is none, `DIGEST_HELD` where another task holds it.

    The holder puts the record back or drops it.
    """
    found: bytes | None = exchange.run_commands(hold_digest_command(payload))[0]
    return found


def put_digest(payload: UUID, record: bytes) -> None:
    """Put the digest record back."""
    exchange.run_commands(("SET", keys.digest(payload), record, "EX", int(conf.current().buffer_expiry)))


def drop_digest_command(payload: UUID) -> exchange.Command:
    """Return the command that does what `drop_digest` does."""
    return "UNLINK", keys.digest(payload)


def drop_digest(payload: UUID) -> None:
    """Remove the digest record."""
    exchange.run_commands(drop_digest_command(payload))


# -- handover lists --------------------------------------------------------------------------------------------------
#
# A task opens its list by an entry of its own, and runs are added only to a list that exists. Taking removes the whole
# list. So each run either has a task that will look for it, or is published. A run that a killed worker had taken is
# requested again, like any other.


def open_handover_commands(payload: UUID, lease: int) -> tuple[exchange.Command, ...]:
    """Return the commands that open the list of an upload's lease until the task takes what is on it."""
    key = keys.handover(payload, lease)
    return ("RPUSH", key, _OPEN), ("EXPIRE", key, HANDOVER_SECONDS)


async def ahand_over(payload: UUID, lease: int, run: bytes) -> bool:
    """Add a run to the list; return False where no list is open. Raises `BufferUnavailable`."""
    with reporting():
        return bool(await aclient().rpushx(keys.handover(payload, lease), run))


def take_handed_over(payload: UUID, lease: int) -> list[bytes]:
    """Return the runs on the list, and remove the list. Raises `BufferUnavailable`."""
    (found,) = exchange.run_commands(("LPOP", keys.handover(payload, lease), MOST_HANDED_OVER))
    return [run for run in found or () if run != _OPEN]
