"""The bytes of a whole payload, wherever they lie: inline in its row, or in segments."""

from __future__ import annotations

import io
import os
from collections.abc import Generator, Iterator, Sequence

from delivery.errors import IntegrityError, StorageUnavailable
from delivery.models import Payload, Segment
from delivery.storage import files


def segments_of(payload: Payload, start: int, end: int) -> list[Segment]:
    """Return the segments that hold bytes `start` to `end` (exclusive), in order.

    Raises `IntegrityError` where rows do not cover all of them.
    """
    found = payload.segments.filter(offset__lt=end).order_by("offset")
    return covering([segment for segment in found if segment.offset + segment.length > start], start, end)


def covering(segments: list[Segment], start: int, end: int) -> list[Segment]:
    """Return these segments, in order, if they hold bytes `start` to `end` (exclusive). Raises `IntegrityError`."""
    at = start
    for segment in segments:
        if segment.offset > at:
            break
        at = segment.offset + segment.length
    if at < end:
        raise IntegrityError(f"stored bytes are missing from offset {at} on")
    return segments


def pieces(payload: Payload, start: int, end: int, buffer: memoryview) -> Iterator[memoryview]:
    """Yield bytes `start` to `end` of a payload as views into `buffer`, each valid until the next.

    Raises `StorageUnavailable`, and `IntegrityError` where a file has become shorter, or changed where it lies.
    """
    if payload.inline is not None:
        yield memoryview(bytes(payload.inline))[start:end]
        return
    yield from pieces_of(segments_of(payload, start, end), start, end, buffer)


def pieces_of(
    segments: Sequence[Segment], start: int, end: int, buffer: memoryview
) -> Generator[memoryview, None, None]:
    """Do what `pieces` does, from segments that cover the bytes."""
    for segment in segments:
        if segment.offset + segment.length <= start:
            continue
        check_unchanged(segment)
        first = max(start, segment.offset)
        last = min(end, segment.offset + segment.length)
        at = segment.file_offset + first - segment.offset
        yield from files.read(segment.storage, segment.name, at, last - first, buffer)


def check_unchanged(segment: Segment) -> None:
    """Compare a file delivered in place with what it was when it was offered.

    Raises `IntegrityError`, and `StorageUnavailable` where it is not there.
    """
    if segment.file_size is None:
        return
    backend = files.storage(segment.storage)
    with files.reporting():
        size = backend.size(segment.name)
        modified = _modified(segment.storage, segment.name) if segment.file_modified_at else None
    if size != segment.file_size or modified != segment.file_modified_at:
        raise IntegrityError("the file that was to be delivered in place has changed")


def _modified(alias: str, name: str) -> object:
    return files.storage(alias).get_modified_time(name)


def delete_files(segments: Sequence[Segment]) -> None:
    """Delete the files of segments that are ours."""
    for segment in segments:
        if segment.owned:
            files.delete(segment.storage, segment.name)


class PayloadFile(io.RawIOBase):
    """A payload as a seekable, read-only binary file.

    Opening it queries the database, reading does not. One stored file at a time is open, for as long as reads go on
    where the last one ended: with object storage, each opening is a download.
    """

    def __init__(self, payload: Payload) -> None:
        if payload.size is None:
            raise StorageUnavailable("the payload is not complete")
        self._inline = None if payload.inline is None else memoryview(bytes(payload.inline))
        self._segments = [] if payload.inline is not None else segments_of(payload, 0, payload.size)
        self._size = payload.size
        self._at = 0
        self._pieces: Generator[memoryview, None, None] | None = None
        self._left = memoryview(b"")  # of the last piece, from `_at` on

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("negative seek position")
        if base + offset != self._at:
            self._stop()
        self._at = base + offset
        return self._at

    def close(self) -> None:
        self._stop()
        super().close()

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        filled = 0
        while filled < len(view) and self._at < self._size:
            if not self._left:
                self._left = self._next()
            taken = self._left[: len(view) - filled]
            view[filled : filled + len(taken)] = taken
            self._left = self._left[len(taken) :]
            self._at += len(taken)
            filled += len(taken)
        return filled

    def _next(self) -> memoryview:
        if self._inline is not None:
            return self._inline[self._at :]
        if self._pieces is None:
            scratch = memoryview(bytearray(min(files.PIECE_BYTES, self._size - self._at)))
            self._pieces = pieces_of(self._segments, self._at, self._size, scratch)
        return next(self._pieces)

    def _stop(self) -> None:
        self._left = memoryview(b"")
        if self._pieces is not None:
            self._pieces.close()
            self._pieces = None
