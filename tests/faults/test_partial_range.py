"""What a fault left of a staged range never stands in the way of staging it again."""

from __future__ import annotations

import uuid

import pytest

from delivery.buffer import blocks, keys
from delivery.buffer.blocks import BLOCK_SIZE
from delivery.buffer.values import Values
from tests.stack import Site


@pytest.mark.parametrize("damage", ["gone", "changed"])
async def test_a_range_with_a_block_that_is_gone_or_changed_counts_as_not_staged(site: Site, damage: str) -> None:
    """Evicted, or dropped by one reader while it was staged for another: `make faults` found deliveries hang on it."""
    payload = uuid.uuid4()
    await site.run(blocks.put, payload, 0, [bytes(BLOCK_SIZE), bytes(BLOCK_SIZE), b"end"])
    with site.stack.redis() as client:
        if damage == "gone":
            client.delete(keys.block(payload, 1))
        else:
            client.set(keys.block(payload, 1), b"other bytes", ex=60)
    line = Values()
    assert await blocks.aget(line, payload, 0, 3) is None
    assert not await blocks.astaged(payload, 0)
    await site.run(blocks.put, payload, 0, [bytes(BLOCK_SIZE), bytes(BLOCK_SIZE), b"end"])
    found = await blocks.aget(line, payload, 0, 3)
    assert found is not None
    assert [len(block.data) for block in found] == [BLOCK_SIZE, BLOCK_SIZE, 3]
    await line.close()
    await blocks.adrop(payload, 2 * BLOCK_SIZE + 3, 0)
