"""Chunks of uploads: a web process writes them, the task that stores them fetches them once and drops them."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence
from uuid import UUID

import redis

from delivery import conf
from delivery.buffer import exchange, keys
from delivery.buffer.pool import aclient, reporting
from delivery.buffer.stream import Stream
from delivery.errors import ChunksLost, IntegrityError
from delivery.protocol.frames import checksum
from delivery.protocol.storing import ChunkRange

PIECE_BYTES = 256 * 1024
Data = bytes | memoryview


async def aput(line: Stream, payload: UUID, lease: int, chunk_size: int, start: int, chunks: Sequence[Data]) -> None:
    """Buffer chunks from `start` on, in one round trip over `line`. Raises `BufferUnavailable`; then any of them may be missing."""
    end = start * chunk_size + sum(map(len, chunks))
    values = [(keys.chunk(payload, lease, seq), data) for seq, data in enumerate(chunks, start)]
    progress = (keys.progress(payload, lease), b"%d:%d" % (chunk_size, end))
    await line.put([*values, progress], int(conf.current().buffer_expiry))


async def aput_checksums(line: Stream, payload: UUID, lease: int, run: ChunkRange, checksums: Sequence[int]) -> None:
    """Leave the checksums of a run for the task that stores it. Raises `BufferUnavailable`."""
    packed = struct.pack(f">{len(checksums)}I", *checksums)
    await line.put([(_checksums(payload, lease, run), packed)], int(conf.current().buffer_expiry))


async def abuffered(payload: UUID, lease: int) -> tuple[int, int]:
    """Return (chunk size, byte position) up to which a lease has buffered; (0, 0) if unknown."""
    with reporting():
        value = await aclient().get(keys.progress(payload, lease))
    if value is None:
        return 0, 0
    size, end = value.split(b":")
    return int(size), int(end)


async def akeep(payload: UUID, lease: int, run: ChunkRange) -> None:
    """Renew the TTL of a run's chunks, which still wait for a worker."""
    seconds = int(conf.current().buffer_expiry)
    with reporting():
        pipe = aclient().pipeline(transaction=False)
        for seq in range(run.start, run.end):
            pipe.expire(keys.chunk(payload, lease, seq), seconds)
        pipe.expire(keys.checksums(payload, lease, run.start), seconds)
        await pipe.execute()


def fetch(payload: UUID, lease: int, run: ChunkRange, *first: exchange.Command) -> Iterator[bytes]:
    """Yield the data of a run in pieces of at most 256 KiB. Each chunk is checked after its last piece.

    `first`: commands to send along; their replies are ignored, errors included.

    Raises `ChunksLost` at the first chunk that is gone (with its seq), `IntegrityError` where Redis gives back other
    bytes than were put there, `BufferUnavailable`.
    """
    names = keys.chunks(payload, lease, run.start, run.end)
    with exchange.connection() as line:
        line.send(*first, ("GET", _checksums(payload, lease, run)), ("MGET", *names))
        for _ in first:
            with contextlib.suppress(redis.ResponseError):  # Redis may be full: this task makes room
                line.reply()
        expected = _unpacked(line.reply(), len(names))
        line.expect(len(names))
        for number in range(len(names)):
            if line.length() is None:
                raise ChunksLost(run.start + number)
            crc = 0
            while piece := line.read(PIECE_BYTES):
                crc = checksum(piece, crc)
                yield piece
            if expected is not None and crc != expected[number]:
                raise IntegrityError(f"chunk {run.start + number} changed in the buffer")


def _unpacked(packed: bytes | None, count: int) -> tuple[int, ...] | None:
    """Return the checksums of `count` chunks, None for a run that was re-cut on resuming, which has none."""
    if packed is None or len(packed) != 4 * count:
        return None
    return struct.unpack(f">{count}I", packed)


def drop_command(payload: UUID, lease: int, run: ChunkRange) -> exchange.Command:
    """Return the command that does what `drop` does."""
    return "UNLINK", *_names(payload, lease, run)


def drop(payload: UUID, lease: int, run: ChunkRange) -> None:
    """Remove a run from the buffer: it is stored, or no longer needed."""
    exchange.run_commands(drop_command(payload, lease, run))


async def adrop(payload: UUID, lease: int, run: ChunkRange) -> None:
    """Do what `drop` does."""
    with reporting():
        await aclient().unlink(*_names(payload, lease, run))


def _names(payload: UUID, lease: int, run: ChunkRange) -> list[str]:
    return [*keys.chunks(payload, lease, run.start, run.end), _checksums(payload, lease, run)]


def _checksums(payload: UUID, lease: int, run: ChunkRange) -> str:
    return keys.checksums(payload, lease, run.start)
