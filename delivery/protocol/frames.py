"""The chunk: one binary message of a 12-byte big-endian header and data (PROTOCOL section 3)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import crc32c

from delivery.errors import ProtocolViolation

HEADER = struct.Struct(">III")
HEADER_BYTES = HEADER.size
MAX_SEQ = 2**32 - 1
CHUNK_SIZE_MIN = 4_096
CHUNK_SIZE_MAX = 4_194_304


@dataclass(frozen=True, slots=True)
class Chunk:
    """A received chunk. `data` is a view into the message that came, not a copy."""

    handle: int
    seq: int
    checksum: int
    data: memoryview

    def intact(self) -> bool:
        """Return whether the data has the checksum that the header names."""
        return checksum(self.data) == self.checksum


def checksum(data: bytes | bytearray | memoryview, before: int = 0) -> int:
    """Return the CRC-32C of `data` as an unsigned 32-bit number; `before` is that of what `data` follows."""
    # This package rather than google-crc32c: equally fast (27 GB/s), and it takes views, where the other wants a copy.
    return crc32c.crc32c(data, before)


def encode_header(handle: int, seq: int, crc: int) -> bytes:
    """Return the 12 bytes that precede a chunk's data."""
    return HEADER.pack(handle, seq, crc)


def encode(handle: int, seq: int, data: bytes | bytearray | memoryview, crc: int | None = None) -> bytes:
    """Return one binary message. `crc` saves computing a checksum that is known already."""
    return b"".join((HEADER.pack(handle, seq, checksum(data) if crc is None else crc), data))


def decode(message: bytes | bytearray | memoryview) -> Chunk:
    """Split a binary message; its checksum is not looked at.

    Raises `ProtocolViolation` where the header is cut short or no data follows it: data is never empty.
    """
    if len(message) <= HEADER_BYTES:
        raise ProtocolViolation("chunk without data")
    handle, seq, crc = HEADER.unpack_from(message)
    return Chunk(handle, seq, crc, memoryview(message)[HEADER_BYTES:])


def is_chunk_size(value: int) -> bool:
    """Return whether `value` is a power of two from 4,096 to 4,194,304 bytes."""
    return CHUNK_SIZE_MIN <= value <= CHUNK_SIZE_MAX and value & (value - 1) == 0


def chunk_count(size: int, chunk_size: int) -> int:
    """Return how many chunks a payload of `size` bytes has."""
    return -(-size // chunk_size)


def agreed_chunk_size(offered: int, announced: int, stored: int, size: int | None) -> int:
    """Return the accepted chunk size in bytes (PROTOCOL section 2).

    It is the largest power of two above neither the offered size nor the receiver's announced one that divides the
    `stored` length; anything divides nothing, and everything.
    """
    chosen = min(offered, announced)
    if stored and stored != size:
        chosen = min(chosen, stored & -stored)
    return chosen
