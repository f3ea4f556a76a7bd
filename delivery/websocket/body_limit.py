"""Limits on the bodies of HTTP requests, which Django spools to temporary files before any view or login check runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """Bounds in bytes. `most`: of one body, 0 for any length. `budget`: of all that one process holds, 0 for any number.

    `streamed`: path prefixes whose application reads bodies as they come; nothing of this holds there.
    """

    most: int = 0
    streamed: Sequence[str] = ()
    budget: int = 0

    def of(self, path: str) -> int | None:
        """Return how many bytes a request for `path` may bring, None for any number."""
        if not self.most or path.startswith(tuple(self.streamed)):
            return None
        return self.most


class BodyBudget:
    """The bytes of bodies that the requests of one process hold together, at most `most`; 0 is any number.

    They are held until the application is done with the request. Belongs to one event loop.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0

    def reserve(self, size: int) -> bool:
        """Hold `size` bytes more; return False, and hold none of them, where they are too many."""
        if self._most and self._held + size > self._most:
            return False
        self._held += size
        return True

    def release(self, size: int) -> None:
        """Hold `size` bytes less."""
        self._held -= size
