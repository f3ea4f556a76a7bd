"""Where the bytes of a delivery go in a program: block by block to who iterates. `file_sink` has the one that saves files.

A sink says from which byte it wants to go on, takes blocks in order, each once, and at the end checks the digest.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from delivery.errors import IntegrityError, UsageError


@dataclass(frozen=True, slots=True)
class Saved:
    """What was received: `size` in bytes, and the path where a file sink put it."""

    size: int
    sha256: str
    path: Path | None = None


class Sink(Protocol):
    """Takes the bytes of one delivery."""

    @property
    def position(self) -> int:
        """The byte to go on from: everything below is kept."""

    async def open(self) -> Saved | None:
        """Find out the position; return what was received where all of it was, by an earlier process perhaps."""

    async def write(self, blocks: Sequence[memoryview]) -> None:
        """Keep blocks behind `position`, which then moves. Raises `StorageUnavailable` where that fails."""

    @property
    def keeps_blocks(self) -> bool:
        """Whether it still looks at blocks after `write` returned: nothing else may be read into their buffers."""

    @property
    def full(self) -> bool:
        """Whether nothing more may come now: a slow reader gives no credit."""

    async def ready(self) -> None:
        """Return when it is no longer full."""

    async def finish(self, expected: set[str]) -> Saved:
        """Check what was kept against all `expected` digests; raises `IntegrityError` where one differs."""

    async def detach(self) -> None:
        """Make the position durable, since the connection is gone."""

    async def discard(self) -> None:
        """Drop everything: the transfer ended for good."""


class MemorySink:
    """Keeps all blocks, at most `limit` bytes; `data` is what came, in one piece. Raises `UsageError` beyond the limit."""

    full = False
    keeps_blocks = True

    def __init__(self, limit: int | None = None) -> None:
        self.position = 0
        self._limit = limit
        self._blocks: list[memoryview] = []
        self._hash = hashlib.sha256()

    @property
    def data(self) -> bytes:
        return b"".join(self._blocks)

    async def open(self) -> Saved | None:
        return None

    async def write(self, blocks: Sequence[memoryview]) -> None:
        if self._limit is not None and self.position + sum(map(len, blocks)) > self._limit:
            raise UsageError(f"it has more bytes than the {self._limit} that fit into memory: use save")
        for block in blocks:
            self._hash.update(block)
            self.position += len(block)
        self._blocks.extend(blocks)

    async def ready(self) -> None:
        pass

    async def finish(self, expected: set[str]) -> Saved:
        return _checked(self.position, self._hash.hexdigest(), expected)

    async def detach(self) -> None:
        pass

    async def discard(self) -> None:
        self._blocks.clear()


def _checked(size: int, sha256: str, expected: set[str]) -> Saved:
    if expected - {sha256}:
        raise IntegrityError(f"what was received has the SHA-256 {sha256}, another was announced")
    return Saved(size, sha256)


class StreamSink:
    """Hands blocks to one reader, at most one run ahead of it."""

    keeps_blocks = True

    def __init__(self) -> None:
        self._blocks: deque[memoryview] = deque()
        self._position = 0
        self._hash = hashlib.sha256()
        self._changed = asyncio.Event()
        self._taken = asyncio.Event()
        self._taken.set()
        self._ended = False

    @property
    def position(self) -> int:
        return self._position

    async def open(self) -> Saved | None:
        return None

    async def write(self, blocks: Sequence[memoryview]) -> None:
        for block in blocks:
            self._hash.update(block)
            self._position += len(block)
        self._blocks.extend(blocks)
        self._taken.clear()
        self._changed.set()

    @property
    def full(self) -> bool:
        return not self._taken.is_set()

    async def ready(self) -> None:
        await self._taken.wait()

    async def finish(self, expected: set[str]) -> Saved:
        return _checked(self._position, self._hash.hexdigest(), expected)

    async def detach(self) -> None:
        pass

    async def discard(self) -> None:
        self._blocks.clear()

    def end(self) -> None:
        """Nothing more comes: the reader gets what is left, and ends."""
        self._ended = True
        self._changed.set()

    async def blocks(self) -> AsyncIterator[bytes]:
        """Yield the blocks in order; each stands for itself, in sizes that the connection chose."""
        while True:
            while self._blocks:
                yield bytes(self._blocks.popleft())
            self._taken.set()
            if self._ended:
                return
            self._changed.clear()
            await self._changed.wait()
