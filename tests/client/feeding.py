"""A producer that a test drives, in every shape that an iterator can have."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

BLOCK = 10_000
KINDS = ["iterator", "generator", "async iterator", "async generator"]


class Feeding:
    """A producer that a test drives: `give` lets it go on by one block, `end` ends it. `kinds` says in which shapes."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.given = bytearray()
        self.pulls = 0  # that began
        self.inside = 0
        self.closed = False
        self._blocks: list[bytes | Exception | None] = []
        self._ready = threading.Condition()

    def give(self, size: int = BLOCK) -> None:
        block = os.urandom(size)
        self.given += block
        self._put(block)

    def end(self) -> None:
        self._put(None)

    def fail(self, error: Exception) -> None:
        self._put(error)

    def _put(self, item: bytes | Exception | None) -> None:
        with self._ready:
            self._blocks.append(item)
            self._ready.notify_all()

    def payload(self) -> Any:
        return {
            "iterator": lambda: _Plain(self),
            "generator": self._generator,
            "async iterator": lambda: _Async(self),
            "async generator": self._async_generator,
        }[self.kind]()

    def pull(self) -> bytes | None:
        """Return the next block, None at the end; wait for it. Fails where two threads are in it."""
        with self._ready:
            self.pulls += 1
            assert not self.inside, "two threads in one iterator"
            self.inside += 1
            self._ready.wait_for(lambda: self._blocks, timeout=30)
            self.inside -= 1
            return self._next()

    async def pull_async(self) -> bytes | None:
        self.pulls += 1
        assert not self.inside, "two tasks in one iterator"
        self.inside += 1
        try:
            while not self._blocks:
                await asyncio.sleep(0.002)
        finally:
            self.inside -= 1
        return self._next()

    def _next(self) -> bytes | None:
        item = self._blocks.pop(0)
        if isinstance(item, Exception):
            raise item
        return item

    def _generator(self) -> Iterator[bytes]:
        try:
            while (block := self.pull()) is not None:
                yield block
        finally:
            self.closed = True

    async def _async_generator(self) -> AsyncIterator[bytes]:
        try:
            while (block := await self.pull_async()) is not None:
                yield block
        finally:
            await asyncio.sleep(0)  # cleaning up may take a turn of the loop
            self.closed = True


class _Plain:
    def __init__(self, feeding: Feeding) -> None:
        self._feeding = feeding

    def __iter__(self) -> _Plain:
        return self

    def __next__(self) -> bytes:
        if (block := self._feeding.pull()) is None:
            raise StopIteration
        return block


class _Async:
    def __init__(self, feeding: Feeding) -> None:
        self._feeding = feeding

    def __aiter__(self) -> _Async:
        return self

    async def __anext__(self) -> bytes:
        if (block := await self._feeding.pull_async()) is None:
            raise StopAsyncIteration
        return block
