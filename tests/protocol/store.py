"""What a transfer moves, and where to: a payload whose every byte shows its place, and a store that survives crashes."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK = 4096  # the smallest chunk: positions in the store are counted in these


class Broken(AssertionError):
    """The core broke a promise of the protocol."""


def expect(kept: bool, promise: str) -> None:
    if not kept:
        raise Broken(promise)


@dataclass(frozen=True)
class Source:
    """A payload, and what its sender knows of it before it is read to the end."""

    data: bytes
    size_known: bool = True
    digest_known: bool = True

    @classmethod
    def of(cls, size: int, **known: bool) -> Source:
        """Make `size` bytes of which no four at a multiple of four are equal, so that a displaced one shows."""
        return cls(struct.pack(f">{size // 4 + 1}I", *range(size // 4 + 1))[:size], **known)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


class Store:
    """What survives every crash: blocks placed by offset, under a lease that fences older writers."""

    fenced = True

    def __init__(self) -> None:
        self.lease = 0
        self.size: int | None = None  # from `finish`
        self.sealed: str | None = None  # the digest, once complete
        self._blocks: dict[int, bytes] = {}

    def begin(self) -> int:
        """Fence all older writers, drop what lies beyond the first gap, and return the new lease."""
        self.lease += 1
        whole = len(self.content())
        self._blocks = {number: data for number, data in self._blocks.items() if number * BLOCK < whole}
        return self.lease

    def commit(self, lease: int, offset: int, data: bytes) -> bool:
        """Store bytes at `offset`; return False where a newer lease fences them off."""
        if self.fenced and lease != self.lease:
            return False
        self._put(lease, offset, data)
        return True

    def _put(self, lease: int, offset: int, data: bytes) -> None:
        for at in range(0, len(data), BLOCK):
            self._blocks[(offset + at) // BLOCK] = data[at : at + BLOCK]

    def content(self) -> bytes:
        """Return what is stored without a gap, from the beginning."""
        return b"".join(self._contiguous())

    def _contiguous(self) -> Iterator[bytes]:
        for number in range(len(self._blocks)):
            if number not in self._blocks:
                return
            yield self._blocks[number]


class AppendingStore(Store):
    """A store that is not idempotent: each writer's runs go, in its own order, behind all that is there."""

    def __init__(self) -> None:
        super().__init__()
        self._data = b""
        self._next: dict[int, int] = {}
        self._early: dict[tuple[int, int], bytes] = {}

    def begin(self) -> int:
        self.lease += 1
        self._next[self.lease] = len(self._data)
        return self.lease

    def _put(self, lease: int, offset: int, data: bytes) -> None:
        self._early[lease, offset] = data
        while (run := self._early.pop((lease, self._next[lease]), None)) is not None:
            self._data += run
            self._next[lease] += len(run)

    def content(self) -> bytes:
        return self._data
