"""Files that can only be read forwards: pipes, standard input, sockets, HTTP responses.

Reads as it comes, in the thread of whoever iterates. Nothing there yet is no end, and a truncated response is no end.
"""

from __future__ import annotations

import io
import os
import select
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

from delivery.errors import IntegrityError

PIECE_BYTES = 262_144


def open_and_read(path: Path) -> Iterator[bytes]:
    """Open and read something that is no regular file; opening a named pipe waits for its writer."""
    with open(path, "rb", buffering=0) as file:
        yield from read_descriptor(file)


def read_forwards(file: Any) -> Iterator[bytes]:
    """Return the pieces of an open file until its own end.

    Raises `IntegrityError` where that cannot be told from a pause, or where an HTTP response was cut.
    """
    raw = getattr(file, "raw", file)
    if isinstance(raw, io.FileIO):
        return _read_buffered(file, raw)
    if isinstance(file, HTTPResponse):
        return _read_response(file)
    return _read_object(file)


def read_descriptor(raw: io.FileIO) -> Iterator[bytes]:
    """Read a descriptor, past any buffer, whose lock a blocked thread would take along into the exit of the process."""
    while (piece := raw.read(PIECE_BYTES)) != b"":
        if piece is None:
            _until_readable(raw)
        else:
            yield piece


def _read_buffered(file: Any, raw: io.FileIO) -> Iterator[bytes]:
    if isinstance(file, io.BufferedReader) and (piece := _left_in(file, raw)):
        yield piece
    yield from read_descriptor(raw)


def _left_in(file: io.BufferedReader, raw: io.FileIO) -> bytes:
    """Return what the program has read ahead, without waiting for more."""
    if not hasattr(select, "poll"):
        return file.read1(PIECE_BYTES)
    if _poll(raw, 0):
        return file.read1(PIECE_BYTES)
    # Python does not say what a buffer holds: only a descriptor that does not block gives it without waiting.
    descriptor = raw.fileno()
    blocking = os.get_blocking(descriptor)
    os.set_blocking(descriptor, False)
    try:
        return file.read1(len(file.peek()))
    finally:
        os.set_blocking(descriptor, blocking)


def _until_readable(raw: io.FileIO) -> None:
    if not hasattr(select, "poll"):
        raise _would_block(raw)
    _poll(raw, None)


def _poll(raw: io.FileIO, milliseconds: int | None) -> bool:
    poll = select.poll()
    poll.register(raw.fileno(), select.POLLIN)
    return bool(poll.poll(milliseconds))


def _read_response(response: HTTPResponse) -> Iterator[bytes]:
    while piece := response.read(PIECE_BYTES):
        yield piece
    if response.length:  # `http.client` itself says nothing
        raise IntegrityError(f"the HTTP response ended {response.length} bytes before its end")


def _read_object(file: Any) -> Iterator[bytes]:
    read = getattr(file, "read1", file.read)
    while True:
        piece = read(PIECE_BYTES)
        if piece is not None and len(piece) == 0 and isinstance(getattr(file, "raw", None), io.RawIOBase):
            piece = file.raw.read(PIECE_BYTES)  # a buffer says b"" where its raw file says None
        if piece is None:
            raise _would_block(file)
        if len(piece) == 0:
            return
        yield piece


def _would_block(file: Any) -> IntegrityError:
    return IntegrityError(
        f"cannot wait for a file that does not block ({type(file).__name__}): open it as one that does"
    )
