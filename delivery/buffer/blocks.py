"""Blocks on their way out: put by the task that stages a range, read by every web process that has a recipient."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from delivery import conf
from delivery.buffer import bulk, keys
from delivery.buffer.clients import aclient, reporting
from delivery.buffer.values import Data, Values
from delivery.protocol.frames import checksum

BLOCK_SIZE = 256 * 1024
RANGE_BLOCKS = 64
RANGE_SIZE = BLOCK_SIZE * RANGE_BLOCKS


@dataclass(frozen=True, slots=True)
class Block:
    """256 KiB by offset (less at the end) with its checksum."""

    data: Data
    checksum: int


def blocks_of(size: int) -> int:
    """Return how many blocks a payload of `size` bytes has."""
    return -(-size // BLOCK_SIZE)


async def aget(line: Values, payload: UUID, first: int, count: int) -> list[Block] | None:
    """Return blocks `first` to `first + count` of one range, or None where any is missing or damaged.

    A range that is there in part only (evicted, or dropped by one reader while it was staged for another) then counts
    as not staged, so that whoever asks for it gets all of it.
    """
    index = first // RANGE_BLOCKS
    names = [keys.range_checksums(payload, index), *(keys.block(payload, n) for n in range(first, first + count))]
    packed, *values = await line.get(names)
    if packed is None:
        return None
    found = _checked(packed, first % RANGE_BLOCKS, values)
    if found is None:
        with reporting():
            await aclient().unlink(keys.range_checksums(payload, index))
    return found


def _checked(packed: Data, offset: int, values: Sequence[Data | None]) -> list[Block] | None:
    """Return the blocks of a range from its `offset`-th on, None where one is missing or has another checksum."""
    if len(packed) < 4 * (offset + len(values)):
        return None
    expected = struct.unpack_from(f">{len(values)}I", packed, 4 * offset)
    found = [Block(value, crc) for value, crc in zip(values, expected, strict=True) if value is not None]
    whole = len(found) == len(values) and all(checksum(block.data) == block.checksum for block in found)
    return found if whole else None


async def astaged(payload: UUID, index: int) -> bool:
    """Return whether range `index` is staged, as far as its checksums tell."""
    with reporting():
        return bool(await aclient().exists(keys.range_checksums(payload, index)))


def looking(payload: UUID, index: int) -> bulk.Command:
    """Return the command that does what `astaged` does; it answers 0 or 1."""
    return "EXISTS", keys.range_checksums(payload, index)


def put(payload: UUID, index: int, blocks: Iterable[bytes | memoryview]) -> None:
    """Stage range `index`: its blocks, then their checksums, whose being there says that all are.

    Each block is sent before the next is asked for, from where it lies: it may be a view of one buffer. Raises
    `BufferUnavailable`, and what `blocks` raises.
    """
    seconds = int(conf.current().buffer_expiry)
    with bulk.exchange() as line:
        numbered = enumerate(blocks, index * RANGE_BLOCKS)
        checksums = [_put(line, keys.block(payload, number), data, seconds) for number, data in numbered]
        for _ in checksums:
            line.reply()
        packed = struct.pack(f">{len(checksums)}I", *checksums)
        # It goes a little before its blocks do, so that a range is missing as a whole rather than in part.
        line.send(("SET", keys.range_checksums(payload, index), packed, "EX", max(1, seconds - 5)))
        line.reply()


def _put(line: bulk.Exchange, name: str, data: bytes | memoryview, seconds: int) -> int:
    """Send one block; return its checksum."""
    line.send_value(name, data, seconds)
    return checksum(data)


async def adrop(payload: UUID, size: int, index: int) -> None:
    """Remove range `index` of a payload of `size` bytes: its last reader here has passed it."""
    first = index * RANGE_BLOCKS
    last = min(first + RANGE_BLOCKS, blocks_of(size))
    with reporting():
        await aclient().unlink(
            keys.range_checksums(payload, index), *(keys.block(payload, number) for number in range(first, last))
        )
