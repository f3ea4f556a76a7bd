"""The cache of blocks of one web process: one fetch for all recipients.

A block is looked up in the cache, then in Redis; else a task stages its range from Storage. Waiters poll as well, since
tasks and wake-ups may be lost.

A range that all readers of this process have passed is removed from Redis at once, so a delivery of any size does not fill
it. If recipients of another web process are behind, their range is staged again, which costs one more read of Storage.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from delivery import dispatch
from delivery.buffer import blocks, leases
from delivery.buffer.blocks import RANGE_GROUPS, RANGE_SIZE, Block
from delivery.buffer.stream import Stream
from delivery.errors import BufferUnavailable, StorageUnavailable, TransferAborted
from delivery.server.ports import ProcessPort
from delivery.transfers import outcomes

logger = logging.getLogger(__name__)

RANGES_OF_TASK = 2  # for who reads fast: one task that stages both costs less than two tasks
RANGES_AHEAD = 1 + RANGES_OF_TASK  # at most, of the one that is read
FAST_SECONDS = 0.1  # for a range
LEAD_GROUPS = 4  # before the end of a range, who reads fast has the next two asked for
STAGING_SECONDS = 0.25  # is enough for a task that runs; one that waits in its queue has its marker
MOST_FAILURES = 4
BUFFER_RETRY_SECONDS = 0.5
MOST_REMEMBERED = 4096

Group = list[Block]
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class _Reached:
    """The range that somebody needs next, since when (monotonic seconds), and whether they came to it fast."""

    index: int
    at: float
    fast: bool


class BlockCache:
    """Groups of blocks by payload and number, least recently used first out. Belongs to one event loop.

    `line`: to Redis. `limit` in bytes. `staged` is called with payload and worker when a worker has staged a range.
    """

    def __init__(self, process: ProcessPort, line: Stream, limit: int, staged: Callable[[UUID, str], None]) -> None:
        self._process = process
        self._line = line
        self._tell_staged = staged
        self._limit = limit
        self._size = 0
        self._groups: OrderedDict[tuple[UUID, int], Group] = OrderedDict()
        self._fetches: dict[tuple[UUID, int], asyncio.Task[Group]] = {}
        self._asked: OrderedDict[tuple[UUID, int], float] = OrderedDict()  # ranges, and until when one is on its way
        self._staged: OrderedDict[UUID, tuple[str, float]] = OrderedDict()
        self._reached: OrderedDict[UUID, _Reached] = OrderedDict()

    def peek(self, payload: UUID, group: int) -> Group | None:
        """Return a group if it is here, without waiting."""
        found = self._groups.get((payload, group))
        if found is not None:
            self._groups.move_to_end((payload, group))
        return found

    def staged_by(self, payload: UUID, since: float) -> str | None:
        """Return the worker that staged a range of a payload last, if that was after `since` (monotonic seconds)."""
        worker, at = self._staged.get(payload, ("", 0.0))
        return worker if at >= since else None

    def on_its_way(self, payload: UUID, index: int) -> bool:
        """Return whether we asked for range `index` a moment ago.

        While its task runs its marker is cleared already: a second task would most likely find that the range was read
        and dropped, and stage it once more for nobody.
        """
        return self._asked.get((payload, index), 0.0) > time.monotonic()

    async def ask(self, payload: UUID, index: int, *, attempt: int, count: int = 1) -> None:
        """Have `count` ranges from `index` on staged, unless somebody asked for the first of them just now.

        Raises `BufferUnavailable`.
        """
        arguments = {"payload": payload.hex, "range": index, "count": count}
        marker = dispatch.stage_marker(payload, index)
        if await self._process.publish(dispatch.STAGE, arguments, marker=marker, attempt=attempt):
            until = time.monotonic() + STAGING_SECONDS
            for number in range(index, index + count):
                _remember(self._asked, (payload, number), until)

    def note_dropped(self, payload: UUID, index: int) -> None:
        """Note that range `index` has left Redis: who wants it asks for it again."""
        self._asked.pop((payload, index), None)

    def note_staged(self, payload: UUID, worker: str) -> None:
        """Note which worker has just staged a range of a payload."""
        _remember(self._staged, payload, (worker, time.monotonic()))
        self._tell_staged(payload, worker)

    async def get(self, payload: UUID, size: int, group: int) -> Group:
        """Return a group of blocks of a payload of `size` bytes, fetched at most once however many ask.

        Raises `TransferAborted` where the payload has ended, `StorageUnavailable` where it cannot be read. Cancelling
        leaves the fetch running for the others.
        """
        key = (payload, group)
        found = self.peek(payload, group)
        if found is not None:
            return found
        task = self._fetches.get(key)
        if task is None:
            task = asyncio.create_task(
                _Fetch(self, self._process, self._line, payload, size, group).run(), name="delivery fetch"
            )
            self._fetches[key] = task
            task.add_done_callback(lambda done: self._fetched(key, done))
        return await asyncio.shield(task)

    def _fetched(self, key: tuple[UUID, int], task: asyncio.Task[Group]) -> None:
        self._fetches.pop(key, None)
        if task.cancelled() or task.exception() is not None:
            return
        group = task.result()
        payload, number = key
        # What is missing from now on is gone.
        _remember(self._asked, (payload, number // RANGE_GROUPS), 0.0)
        self._groups[key] = group
        self._size += sum(len(block.data) for block in group)
        while self._size > self._limit and len(self._groups) > 1:
            _, old = self._groups.popitem(last=False)
            self._size -= sum(len(block.data) for block in old)

    async def stage_ahead(self, payload: UUID, size: int, group: int) -> None:
        """Have what comes after the range of `group` staged, so that it is in Redis when somebody gets there."""
        ahead = group + LEAD_GROUPS * self._reads_fast(payload)
        index = ahead // RANGE_GROUPS + 1
        left = -(-size // RANGE_SIZE) - index
        if left <= 0 or (payload, index) in self._asked:
            return
        self._note_reached(payload, index)
        count = min(left, RANGES_OF_TASK if self._reads_fast(payload) else 1)
        _remember(self._asked, (payload, index), 0.0)
        try:
            if not await blocks.astaged(payload, index):
                await self.ask(payload, index, attempt=0, count=count)
        except BufferUnavailable as error:
            logger.warning("range %d not asked for ahead: %s", index, error)

    def _note_reached(self, payload: UUID, index: int) -> None:
        """Note that somebody will need range `index` next, and whether they got there fast."""
        now = time.monotonic()
        before = self._reached.get(payload, _Reached(index, now, fast=False))
        fast = now - before.at < FAST_SECONDS * (index - before.index)
        _remember(self._reached, payload, _Reached(index, now, fast=fast))

    def _reads_fast(self, payload: UUID) -> bool:
        return payload in self._reached and self._reached[payload].fast


def _remember(table: OrderedDict[K, V], key: K, value: V) -> None:
    """Put something into a table from which the oldest goes when it is full."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > MOST_REMEMBERED:
        table.popitem(last=False)


class _Fetch:
    """One group on its way from Redis, staged first where it is not there."""

    def __init__(
        self, cache: BlockCache, process: ProcessPort, line: Stream, payload: UUID, size: int, group: int
    ) -> None:
        self._cache = cache
        self._process = process
        self._line = line
        self._payload = payload
        self._size = size
        self._group = group
        self._range = group // RANGE_GROUPS
        self._woken = asyncio.Event()
        self._ended: str | None = None
        self._failures = 0

    async def run(self) -> Group:
        found = await self._look()
        if found is not None:
            return found
        await self._process.subscriber.add(self._payload.hex, self._on_wake)
        try:
            return await self._wait()
        finally:
            await self._process.subscriber.remove(self._payload.hex, self._on_wake)

    async def _look(self) -> Group | None:
        try:
            return await blocks.aget(self._line, self._payload, self._size, self._group)
        except BufferUnavailable as error:
            logger.warning("%s", error)
            return None

    async def _wait(self) -> Group:
        attempt = 0
        while True:
            self._woken.clear()
            try:
                if self._cache.on_its_way(self._payload, self._range):
                    patience = STAGING_SECONDS
                else:
                    await self._cache.ask(self._payload, self._range, attempt=attempt)
                    patience = leases.marker_seconds(attempt)
                    attempt += 1
            except BufferUnavailable as error:
                logger.warning("%s", error)
                patience = BUFFER_RETRY_SECONDS
            # Looking right away as well: it may have been staged while we subscribed.
            found = await self._look()
            if found is None:
                await self._sleep(patience)
                found = await self._look()
            if found is not None:
                return found
            await self._check_alive()

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            pass

    async def _check_alive(self) -> None:
        if self._failures > MOST_FAILURES:
            raise StorageUnavailable(f"range {self._range} of {self._payload} cannot be read")
        if self._ended is None:
            state, _, _, failure = await self._process.db(outcomes.outcome, self._payload)
            self._ended = None if state == "complete" else (failure or "cancelled")
        if self._ended is not None:
            raise TransferAborted(self._ended)

    def _on_wake(self, message: dict[str, Any]) -> None:
        event = message.get("event")
        if event == "ended":
            self._ended = str(message.get("code") or "cancelled")
            self._woken.set()
        elif event in ("staged", "unstaged") and message.get("range") == self._range:
            self._failures += event == "unstaged"
            self._cache.note_staged(self._payload, str(message.get("worker", "")))
            self._woken.set()


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
