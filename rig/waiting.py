"""Waiting until something holds, with a deadline.

Every deadline is multiplied by the environment variable TEST_SLOWNESS (default 1), for machines that are slow or busy.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
POLL_SECONDS = 0.02


def slowed(seconds: float) -> float:
    """Return a deadline as it is on this machine: `seconds` times TEST_SLOWNESS."""
    return seconds * float(os.environ.get("TEST_SLOWNESS", "1"))


def wait_until(look: Callable[[], T], *, what: str, seconds: float = 30.0, pause: float = POLL_SECONDS) -> T:
    """Return what `look` returns as soon as that is true. Blocks. Raises TimeoutError that names `what`."""
    deadline = time.monotonic() + slowed(seconds)
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise _late(what, seconds)
        time.sleep(pause)
    return seen


async def until(
    look: Callable[[], Awaitable[T] | T], *, what: str, seconds: float = 30.0, pause: float = POLL_SECONDS
) -> T:
    """Return what `look` returns, or what it returned gives when awaited, as soon as that is true.

    Raises TimeoutError that names `what`.
    """
    deadline = time.monotonic() + slowed(seconds)
    while not (seen := await _look(look)):
        if time.monotonic() > deadline:
            raise _late(what, seconds)
        await asyncio.sleep(pause)
    return seen


async def _look(look: Callable[[], Awaitable[T] | T]) -> T:
    seen = look()
    if inspect.isawaitable(seen):
        return await seen
    return seen


def _late(what: str, seconds: float) -> TimeoutError:
    return TimeoutError(f"no {what} within {slowed(seconds):g} s")
