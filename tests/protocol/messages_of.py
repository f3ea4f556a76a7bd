"""Messages with all their members filled in, for tests that care about one or two of them."""

from __future__ import annotations

from typing import Any

from delivery.protocol.frames import Chunk, checksum
from delivery.protocol.messages import Abort, Accept, Ack, Done, Finish, Nack, Reject, UploadOffer

TRANSFER = "0f8fad5b-d9cb-469f-a165-70867728950e"
PAYLOAD = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
DIGEST = "ab" * 32
OTHER_DIGEST = "cd" * 32
CHUNK = 4096


def offer(**members: Any) -> UploadOffer:
    return UploadOffer(
        **{"transfer": TRANSFER, "handle": 7, "name": "n", "size": 10 * CHUNK, "chunk_size": CHUNK, **members}
    )


def accept(**members: Any) -> Accept:
    return Accept(**{"transfer": TRANSFER, "handle": 7, "chunk_size": CHUNK, "seq": 0, "limit": 4, **members})


def ack(seq: int, *, received: int | None = None, limit: int = 10) -> Ack:
    return Ack(handle=7, seq=seq, received=seq if received is None else received, limit=limit)


def nack(seq: int, code: str = "checksum") -> Nack:
    return Nack(handle=7, seq=seq, code=code)


def finish(chunks: int = 10, size: int = 10 * CHUNK, sha256: str | None = DIGEST) -> Finish:
    return Finish(handle=7, chunks=chunks, size=size, sha256=sha256)


def done(**members: Any) -> Done:
    return Done(**{"transfer": TRANSFER, "handle": 7, "size": 10 * CHUNK, "sha256": DIGEST, **members})


def abort(**members: Any) -> Abort:
    return Abort(**{"transfer": TRANSFER, "handle": 7, "code": "cancelled", "final": True, **members})


def reject(code: str = "busy") -> Reject:
    return Reject(transfer=TRANSFER, handle=7, code=code)


def chunk(seq: int, length: int = CHUNK, *, intact: bool = True) -> Chunk:
    data = bytes([seq % 256]) * length
    return Chunk(7, seq, checksum(data) ^ (not intact), memoryview(data))
