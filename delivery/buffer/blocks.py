"""Blocks of deliveries: the task that stages a range writes them, every web process with a recipient reads them.

Redis holds them in groups, because the fixed cost of a value equals that of moving 100 KiB.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from uuid import UUID

from delivery import conf
from delivery.buffer import exchange, keys
from delivery.buffer.pool import aclient, reporting
from delivery.buffer.stream import Data, Stream
from delivery.protocol.frames import checksum

BLOCK_SIZE = 256 * 1024
GROUP_BLOCKS = 8
GROUP_SIZE = BLOCK_SIZE * GROUP_BLOCKS
RANGE_BLOCKS = 64
RANGE_SIZE = BLOCK_SIZE * RANGE_BLOCKS
RANGE_GROUPS = RANGE_BLOCKS // GROUP_BLOCKS


@dataclass(frozen=True, slots=True)
class Block:
    """256 KiB by offset (less at the end) with its checksum."""

    data: Data
    checksum: int


async def aget(line: Stream, payload: UUID, size: int, group: int) -> list[Block] | None:
    """Return the blocks of a group of a payload of `size` bytes, or None where they are missing or damaged.

    A range of which only a part is present (evicted, or dropped by one reader while it was staged for another) then
    counts as not staged, so that the next request stages all of it.
    """
    index, number = divmod(group, RANGE_GROUPS)
    packed, value = await line.get([keys.range_checksums(payload, index), keys.group(payload, group)])
    if packed is None:
        return None
    found = (
        None if value is None or len(value) != _length(size, group) else _checked(packed, number * GROUP_BLOCKS, value)
    )
    if found is None:
        with reporting():
            await aclient().unlink(keys.range_checksums(payload, index))
    return found


def _checked(packed: Data, first: int, value: Data) -> list[Block] | None:
    """Return the blocks of a group, beginning with block `first` of its range; None if a checksum differs."""
    view = memoryview(value)
    parts = [view[at : at + BLOCK_SIZE] for at in range(0, len(view), BLOCK_SIZE)]
    if len(packed) < 4 * (first + len(parts)):
        return None
    expected = struct.unpack_from(f">{len(parts)}I", packed, 4 * first)
    found = [Block(part, crc) for part, crc in zip(parts, expected, strict=True)]
    return found if all(checksum(block.data) == block.checksum for block in found) else None


async def astaged(payload: UUID, index: int) -> bool:
    """Return whether range `index` is staged, as far as its checksums tell."""
    with reporting():
        return bool(await aclient().exists(keys.range_checksums(payload, index)))


def staged_command(payload: UUID, index: int) -> exchange.Command:
    """Return the command that does what `astaged` does; it answers 0 or 1."""
    return "EXISTS", keys.range_checksums(payload, index)


def put(payload: UUID, size: int, index: int, blocks: Iterator[bytes | memoryview]) -> None:
    """Stage range `index` of a payload of `size` bytes: first its blocks, then their checksums, which mark it as staged.

    Each block is sent without a copy before the next is requested, so all may be views of one buffer. Raises
    `BufferUnavailable`, and what `blocks` raises.
    """
    seconds = int(conf.current().buffer_expiry)
    groups = _groups(size, index)
    checksums: list[int] = []
    with exchange.connection() as line:
        for group in groups:
            parts = _noting(checksums, islice(blocks, GROUP_BLOCKS))
            line.send_value(keys.group(payload, group), _length(size, group), parts, seconds)
        for _ in groups:
            line.reply()
        packed = struct.pack(f">{len(checksums)}I", *checksums)
        # It expires a little before its blocks, so that a range disappears as a whole rather than in part.
        line.send(("SET", keys.range_checksums(payload, index), packed, "EX", max(1, seconds - 5)))
        line.reply()


def _noting(checksums: list[int], blocks: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Yield the blocks, and record the checksum of each after it was sent, while Redis receives it."""
    for block in blocks:
        yield block
        checksums.append(checksum(block))


async def adrop(payload: UUID, size: int, index: int) -> None:
    """Remove range `index` of a payload of `size` bytes: its last reader here has passed it."""
    groups = (keys.group(payload, group) for group in _groups(size, index))
    with reporting():
        await aclient().unlink(keys.range_checksums(payload, index), *groups)


def _length(size: int, group: int) -> int:
    """Return how many bytes of a payload of `size` bytes are in a group."""
    return min(GROUP_SIZE, size - group * GROUP_SIZE)


def _groups(size: int, index: int) -> range:
    """Return the groups of range `index` of a payload of `size` bytes."""
    first = index * RANGE_GROUPS
    return range(first, min(first + RANGE_GROUPS, -(-size // GROUP_SIZE)))
