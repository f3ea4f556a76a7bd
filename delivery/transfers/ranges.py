"""Staging: a range of a complete payload goes from Storage into the buffer, for all its recipients at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from uuid import UUID

from delivery import dispatch, notify
from delivery.buffer import blocks, exchange, leases
from delivery.buffer.blocks import BLOCK_SIZE, RANGE_SIZE
from delivery.errors import BufferUnavailable, IntegrityError, StorageUnavailable
from delivery.models import Payload, PayloadState, Segment
from delivery.storage import payloads
from delivery.transfers import missing_files, outcomes, timeline
from delivery.transfers.sql import Statement

logger = logging.getLogger(__name__)

_PAYLOAD = Statement(Payload, "SELECT {state}, {size} FROM {table} WHERE {id} = %s", "id")
_SEGMENTS = Statement(
    Segment,
    "SELECT {storage}, {name}, {offset}, {file_offset}, {length}, {file_size} FROM {table}"
    " WHERE {payload} = %s AND {offset} < %s"
    " AND {offset} >= (SELECT MAX({offset}) FROM {table} WHERE {payload} = %s AND {offset} <= %s) ORDER BY {offset}",
    *("payload", "offset", "payload", "offset"),
)


def stage(payload_id: UUID, index: int, *, worker: str, count: int = 1) -> None:
    """Stage `count` ranges from `index` on, and wake who waits after each. Idempotent.

    A file delivered in place that has changed fails its payload visibly; Storage that fails is told in the wake-up.
    """
    for number in range(index, index + count):
        if not _stage(payload_id, number, worker):
            break


def _stage(payload_id: UUID, index: int, worker: str) -> bool:
    """Stage one range; return whether it is there now."""
    try:
        begun = leases.clear_command(dispatch.stage_marker(payload_id, index))
        _, staged = exchange.run_commands(begun, blocks.staged_command(payload_id, index))
        state, size = (_PAYLOAD.fetch(payload_id) or [(None, None)])[0]
        if state in (PayloadState.STORING, PayloadState.SEALING):
            return False  # a stray task: who listens is its sender, for whom nothing has ended
        if state != PayloadState.COMPLETE or size is None or index * RANGE_SIZE >= size:
            notify.wake(payload_id, "ended", code="expired")
            return False
        if not staged:  # else asked for twice, by two who wanted it at once
            blocks.put(payload_id, size, index, _blocks(payload_id, size, index))
    except IntegrityError as error:
        logger.error("payload %s: %s", payload_id, error)
        timeline.note("damaged", payload=payload_id, range=index)
        outcomes.fail(payload_id, "digest")
        return False
    except StorageUnavailable as error:
        logger.error("range %d of %s not staged: %s", index, payload_id, error)
        timeline.note("storage_unavailable", payload=payload_id, range=index)
        missing_files.seen_if_missing(payload_id, error)
        notify.wake(payload_id, "unstaged", range=index, worker=worker)
        return False
    except BufferUnavailable as error:
        logger.warning("range %d of %s not staged: %s", index, payload_id, error)
        return False
    notify.wake(payload_id, "staged", range=index, worker=worker)
    return True


def _pieces(payload: UUID, start: int, end: int) -> Iterator[memoryview]:
    """Yield bytes `start` to `end` of a payload as `payloads.pieces` does, asking for no more rows than have them."""
    buffer = memoryview(bytearray(BLOCK_SIZE))
    rows = _SEGMENTS.fetch(payload, end, payload, start)
    if not rows or any(row[-1] is not None for row in rows):  # inline, or a file of the site's, which may change
        whole = Payload.objects.filter(pk=payload).first()
        if whole is None:
            raise IntegrityError("the payload was removed meanwhile")
        return payloads.pieces(whole, start, end, buffer)
    segments = [
        Segment(storage=alias, name=name, offset=offset, file_offset=file_offset, length=length)
        for alias, name, offset, file_offset, length, _ in rows
    ]
    return payloads.pieces_of(payloads.covering(segments, start, end), start, end, buffer)


def _blocks(payload: UUID, size: int, index: int) -> Iterator[bytes | memoryview]:
    """Yield the blocks of a range, each valid until the next.

    Pieces may end anywhere (segments are not aligned to blocks); one that is a block is not copied.
    """
    start = index * RANGE_SIZE
    end = min(start + RANGE_SIZE, size)
    parts: list[bytes] = []
    length = 0
    for piece in _pieces(payload, start, end):
        view = piece
        while length + len(view) >= BLOCK_SIZE:
            part, view = view[: BLOCK_SIZE - length], view[BLOCK_SIZE - length :]
            yield b"".join((*parts, part)) if parts else part
            parts, length = [], 0
        if view:
            parts.append(bytes(view))
            length += len(view)
    if parts:
        yield b"".join(parts)
