"""Which ranges are still wanted: what every reader of this process has passed leaves Redis at once.

Keeps a delivery of any size from filling Redis. Another web process whose recipients are behind has its range staged
again, which costs a read of Storage and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from delivery.buffer import blocks
from delivery.buffer.blocks import RANGE_SIZE
from delivery.errors import BufferUnavailable
from delivery.server.block_cache import RANGES_AHEAD

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Readers:
    """The readers of one payload: the range that each is in, and the lowest that is not dropped yet."""

    size: int
    at: dict[object, int] = field(default_factory=dict)
    lowest: int = 0
    highest: int = 0


class ReaderTable:
    """All readers of one web process. Belongs to its event loop.

    `dropped` is called with payload and range as soon as a range has left Redis.
    """

    def __init__(self, dropped: Callable[[UUID, int], None]) -> None:
        self._dropped = dropped
        self._payloads: dict[UUID, _Readers] = {}
        self._passed: deque[tuple[UUID, int, int]] = deque()  # payload, its size, range
        self._due = asyncio.Event()

    def move(self, payload: UUID, size: int, reader: object, index: int) -> None:
        """Note that `reader` is in range `index` of a payload of `size` bytes."""
        readers = self._payloads.get(payload)
        if readers is None:
            readers = self._payloads[payload] = _Readers(size, lowest=index)
        if readers.at.get(reader) == index:
            return
        readers.at[reader] = index
        readers.highest = max(readers.highest, index)
        self._drop_below(payload, readers, min(readers.at.values()))

    def leave(self, payload: UUID, reader: object) -> None:
        """Note that `reader` needs nothing more; the last one takes all that is staged along."""
        readers = self._payloads.get(payload)
        if readers is None or readers.at.pop(reader, None) is None:
            return
        if readers.at:
            self._drop_below(payload, readers, min(readers.at.values()))
        else:
            del self._payloads[payload]
            self._drop_below(payload, readers, readers.highest + 1 + RANGES_AHEAD)

    def _drop_below(self, payload: UUID, readers: _Readers, index: int) -> None:
        last = min(index, -(-readers.size // RANGE_SIZE))
        if last <= readers.lowest:
            readers.lowest = min(readers.lowest, index)  # somebody came who is further behind
            return
        self._passed.extend((payload, readers.size, number) for number in range(readers.lowest, last))
        self._due.set()
        readers.lowest = last

    async def run(self) -> None:
        """Drop what was passed, as soon as it was. The process owns the task."""
        while True:
            await self._due.wait()
            self._due.clear()
            while self._passed:
                payload, size, index = self._passed.popleft()
                await _drop(payload, size, index)
                self._dropped(payload, index)


async def _drop(payload: UUID, size: int, index: int) -> None:
    try:
        await blocks.adrop(payload, size, index)
    except BufferUnavailable as error:
        logger.info("a staged range is left to expire: %s", error)
