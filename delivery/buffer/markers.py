"""Markers: who asks for work says so, so that nobody asks for the same while it is on its way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from delivery.buffer import bulk, keys
from delivery.buffer.clients import aclient, client, reporting

FIRST_SECONDS = 2.0
LONGEST_SECONDS = 60.0


def lifetime(attempt: int) -> float:
    """Return how long (seconds) the marker of the `attempt`-th request (zero-based) holds: it doubles up to 60 s."""
    return min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(attempt, 10))


async def aclaim(name: str, *, attempt: int) -> bool:
    """Set the marker `name` unless it is set; return whether the caller is the one who may ask now."""
    with reporting():
        return bool(await _set(aclient(), name, lifetime(attempt)))


async def aclaim_first(names: Sequence[str]) -> list[bool]:
    """Do what `aclaim` does for the first request of each of `names`, in one round trip."""
    with reporting():
        pipe = aclient().pipeline(transaction=False)
        for name in names:
            _set(pipe, name, lifetime(0))
        return [bool(claimed) for claimed in await pipe.execute()]


def claim(name: str, *, seconds: float) -> bool:
    """Do what `aclaim` does, in a thread, for a time of its own."""
    with reporting():
        return bool(_set(client(), name, seconds))


def _set(target: Any, name: str, seconds: float) -> Any:
    """Have a client or a pipeline set a marker that is not set."""
    return target.set(keys.marker(name), "1", nx=True, px=int(seconds * 1000))


def clearing(name: str) -> bulk.Command:
    """Return the command that does what `clear` does."""
    return "UNLINK", keys.marker(name)


def clear(name: str) -> None:
    """Remove a marker: the work it stood for has begun, and may be asked for again."""
    bulk.run(clearing(name))
