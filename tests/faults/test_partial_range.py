"""What a fault left of a staged range never stands in the way of staging it again."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from delivery.buffer import blocks, keys
from delivery.buffer.blocks import BLOCK_SIZE, GROUP_SIZE
from delivery.buffer.stream import Stream
from tests.stack import Site

SIZE = GROUP_SIZE + 2 * BLOCK_SIZE + 3


def _parts() -> Iterator[bytes]:
    return iter([bytes(BLOCK_SIZE)] * (SIZE // BLOCK_SIZE) + [b"end"])


@pytest.mark.parametrize("damage", ["gone", "changed", "shorter"])
async def test_a_range_with_a_group_that_is_gone_or_changed_counts_as_not_staged(site: Site, damage: str) -> None:
    """Evicted, or dropped by one reader while it was staged for another: `make faults` found deliveries hang on it."""
    payload = uuid.uuid4()
    await site.run(blocks.put, payload, SIZE, 0, _parts())
    with site.stack.redis() as client:
        if damage == "gone":
            client.delete(keys.group(payload, 1))
        elif damage == "changed":
            client.setrange(keys.group(payload, 1), BLOCK_SIZE, b"x")
        else:
            client.set(keys.group(payload, 1), bytes(BLOCK_SIZE), ex=60)
    line = Stream()
    assert await blocks.aget(line, payload, SIZE, 1) is None
    assert not await blocks.astaged(payload, 0)
    await site.run(blocks.put, payload, SIZE, 0, _parts())
    found = await blocks.aget(line, payload, SIZE, 1)
    assert found is not None
    assert [len(block.data) for block in found] == [BLOCK_SIZE, BLOCK_SIZE, 3]
    await line.close()
    await blocks.adrop(payload, SIZE, 0)
