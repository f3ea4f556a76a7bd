"""How long the body of an HTTP request may be. Django writes it into a temporary file before any view or login is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """`most`: bytes of one body, 0 for any length. `streamed`: path prefixes whose application reads bodies as they come."""

    most: int = 0
    streamed: Sequence[str] = ()

    def of(self, path: str) -> int | None:
        """Return how many bytes a request for `path` may bring, None for any number."""
        if not self.most or path.startswith(tuple(self.streamed)):
            return None
        return self.most
