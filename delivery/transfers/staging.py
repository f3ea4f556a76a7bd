"""Staging: a range of a complete payload goes from Storage into the buffer, for all its recipients at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from uuid import UUID

from delivery import dispatch, notify
from delivery.buffer import blocks, markers
from delivery.buffer.blocks import BLOCK_SIZE, RANGE_SIZE
from delivery.errors import BufferUnavailable, IntegrityError, StorageUnavailable
from delivery.models import Payload, PayloadState
from delivery.storage import payloads
from delivery.transfers import ending, events

logger = logging.getLogger(__name__)


def stage(payload_id: UUID, index: int, *, worker: str) -> None:
    """Stage range `index` and wake who waits. Idempotent.

    A file delivered in place that has changed fails its payload visibly; Storage that fails is told in the wake-up.
    """
    try:
        markers.clear(dispatch.stage_marker(payload_id, index))
        payload = Payload.objects.filter(pk=payload_id).first()
        if payload is not None and payload.state in (PayloadState.STORING, PayloadState.SEALING):
            return None  # a stray task: who listens is its sender, for whom nothing has ended
        if payload is None or payload.state != PayloadState.COMPLETE:
            return notify.wake(payload_id, "ended", code="expired")
        if payload.size is None or index * RANGE_SIZE >= payload.size:
            return notify.wake(payload_id, "ended", code="expired")
        if not blocks.staged(payload_id, index):  # asked for twice, by two who wanted it at once
            blocks.put(payload_id, index, _blocks(payload, index))
    except IntegrityError as error:
        logger.error("payload %s: %s", payload_id, error)
        events.note("damaged", payload=payload_id, range=index)
        ending.fail(payload_id, "digest")
        return None
    except StorageUnavailable as error:
        logger.error("range %d of %s not staged: %s", index, payload_id, error)
        events.note("storage_unavailable", payload=payload_id, range=index)
        return notify.wake(payload_id, "unstaged", range=index, worker=worker)
    except BufferUnavailable as error:
        logger.warning("range %d of %s not staged: %s", index, payload_id, error)
        return None
    return notify.wake(payload_id, "staged", range=index, worker=worker)


def _blocks(payload: Payload, index: int) -> Iterator[bytes]:
    """Yield the blocks of a range. Pieces may end anywhere (segments are not aligned to blocks)."""
    start = index * RANGE_SIZE
    end = min(start + RANGE_SIZE, payload.size or 0)
    parts: list[bytes] = []
    length = 0
    for piece in payloads.pieces(payload, start, end, memoryview(bytearray(BLOCK_SIZE))):
        view = piece
        while length + len(view) >= BLOCK_SIZE:
            part, view = view[: BLOCK_SIZE - length], view[BLOCK_SIZE - length :]
            yield b"".join((*parts, part))
            parts, length = [], 0
        if view:
            parts.append(bytes(view))
            length += len(view)
    if parts:
        yield b"".join(parts)
