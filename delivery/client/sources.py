"""Where the bytes of an upload come from: a file, memory, or an iterator whose length nobody knows.

A source is read by offset, as often as a resume asks; an iterator keeps what no ack covers yet. It computes the
SHA-256 of the payload on the way. It knows nothing of chunks and connections.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, BinaryIO

from delivery.errors import IntegrityError, UsageError

HASH_PIECE_BYTES = 1_048_576
INSTANT_BYTES = 65_536  # smaller work than this is quicker done than handed to a thread

Payload = (
    Path
    | bytes
    | bytearray
    | memoryview
    | str
    | dict[str, Any]
    | list[Any]
    | BinaryIO
    | Iterable[bytes]
    | AsyncIterable[bytes]
)


class Source:
    """The bytes of one payload. `size` in bytes, None until known; `instant`: reading takes no thread."""

    instant = False

    def __init__(self, size: int | None) -> None:
        self.size = size

    async def prepare(self, start: int, end: int, pool: Executor) -> None:
        """Make bytes `start` to `end` (exclusive) readable; those below `start` are never asked for again."""

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill `view` from byte `offset` on; return how many bytes there were, fewer only at the end. Any thread."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise `IntegrityError` where the source is no longer what it was when it was opened."""

    def forget(self, offset: int) -> None:
        """Note that bytes below `offset` will not be read again."""

    async def digest(self, pool: Executor) -> str:
        """Return the SHA-256 of the whole payload, hex; called when the end is known."""
        raise NotImplementedError

    def digest_at_once(self) -> str | None:
        """Return what `digest` would, None where that takes a while."""
        return None

    def resumed_at(self, offset: int, pool: Executor) -> None:
        """Note that reading starts at `offset`: what lies below is hashed on the side, where it was not yet."""

    def close(self) -> None:
        """Let go of files."""


class MemorySource(Source):
    """Bytes in memory."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._view = memoryview(data).cast("B")
        super().__init__(len(self._view))
        self.instant = True

    def read_into(self, view: memoryview, offset: int) -> int:
        piece = self._view[offset : offset + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def digest_at_once(self) -> str | None:
        return hashlib.sha256(self._view).hexdigest() if len(self._view) <= INSTANT_BYTES else None

    async def digest(self, pool: Executor) -> str:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool, lambda: hashlib.sha256(self._view).hexdigest())


class FileSource(Source):
    """A seekable file, by path or as an open binary file.

    Blocks are hashed as they are read, while they come in order from the start. After a resume past that point one
    thread reads and hashes the whole rest on the side.
    """

    def __init__(self, file: BinaryIO, name: str, *, own: bool) -> None:
        self._file = file
        self._own = own
        self._name = name
        self._start = 0 if own else file.tell()
        super().__init__(file.seek(0, os.SEEK_END) - self._start)
        self._lock = threading.Lock()
        self._descriptor = _descriptor(file) if own else None
        self._stamp = self._look()
        self._hash = hashlib.sha256()
        self._hashed = 0
        self._aside: asyncio.Future[None] | None = None
        self._closed = False

    def read_into(self, view: memoryview, offset: int) -> int:
        length = self._read(view, offset)
        if self._aside is None and offset <= self._hashed < offset + length:
            self._hash.update(view[self._hashed - offset : length])
            self._hashed = offset + length
        return length

    def _read(self, view: memoryview, offset: int) -> int:
        length = 0
        while length < len(view):
            count = self._read_once(view[length:], offset + length)
            if not count:
                break
            length += count
        return length

    def _read_once(self, view: memoryview, offset: int) -> int:
        if self._descriptor is not None:
            return os.preadv(self._descriptor, [view], offset)
        with self._lock:
            self._file.seek(self._start + offset)
            piece = self._file.read(len(view))
        view[: len(piece)] = piece
        return len(piece)

    def check(self) -> None:
        if self._look() != self._stamp:
            raise IntegrityError(f"{self._name} changed while it was sent: send it again")

    def _look(self) -> tuple[int, int] | None:
        if self._descriptor is None:
            return None
        found = os.fstat(self._descriptor)
        return found.st_size, found.st_mtime_ns

    def resumed_at(self, offset: int, pool: Executor) -> None:
        if offset > self._hashed and self._aside is None:
            self._aside = asyncio.get_running_loop().run_in_executor(pool, self._hash_rest)

    def _hash_rest(self) -> None:
        buffer = memoryview(bytearray(HASH_PIECE_BYTES))
        while not self._closed and (length := self._read(buffer, self._hashed)):
            self._hash.update(buffer[:length])
            self._hashed += length

    async def digest(self, pool: Executor) -> str:
        if self._hashed != self.size and self._aside is None:
            self.resumed_at(self._hashed + 1, pool)
        if self._aside is not None:
            await asyncio.shield(self._aside)
        if self._hashed != self.size:
            raise IntegrityError(f"{self._name} has {self._hashed} bytes, {self.size} were expected: it changed")
        return self._hash.hexdigest()

    def close(self) -> None:
        self._closed = True
        if self._own and (self._aside is None or self._aside.done()):
            self._file.close()
        elif self._own and self._aside is not None:
            self._aside.add_done_callback(lambda _: self._file.close())


def _descriptor(file: BinaryIO) -> int | None:
    return file.fileno() if hasattr(os, "preadv") else None


class IteratorSource(Source):
    """Blocks of bytes from an iterator; what no ack covers yet is kept, at most one window.

    A plain iterator is advanced in a thread, since it may block; it is never advanced further than asked for.
    """

    def __init__(self, blocks: Iterator[bytes] | AsyncIterator[bytes]) -> None:
        super().__init__(None)
        self._blocks = blocks
        self._kept: deque[bytes] = deque()
        self._base = 0  # offset of the first kept byte
        self._end = 0  # offset behind the last byte that was pulled
        self._hash = hashlib.sha256()
        self.instant = True

    async def prepare(self, start: int, end: int, pool: Executor) -> None:
        self.forget(start)
        if start < self._base:
            raise IntegrityError(f"an iterator cannot go back to byte {start}: it is kept from {self._base} on")
        while self._end < end and self.size is None:
            block = await self._pull(pool)
            if block is None:
                self.size = self._end
                return
            self._end += len(block)
            self._kept.append(block)
            self.forget(start)

    async def _pull(self, pool: Executor) -> bytes | None:
        if isinstance(self._blocks, AsyncIterator):
            block = await anext(self._blocks, None)
            if block is not None:
                block = _checked(block)
                if len(block) > INSTANT_BYTES:
                    await asyncio.get_running_loop().run_in_executor(pool, self._hash.update, block)
                else:
                    self._hash.update(block)
            return block
        return await asyncio.get_running_loop().run_in_executor(pool, self._advance, self._blocks)

    def _advance(self, blocks: Iterator[bytes]) -> bytes | None:
        block = next(blocks, None)
        if block is None:
            return None
        block = _checked(block)
        self._hash.update(block)
        return block

    def read_into(self, view: memoryview, offset: int) -> int:
        at, length = self._base, 0
        for block in self._kept:
            wanted = offset + length
            if at + len(block) > wanted:
                piece = memoryview(block)[wanted - at :][: len(view) - length]
                view[length : length + len(piece)] = piece
                length += len(piece)
                if length == len(view):
                    break
            at += len(block)
        return length

    def forget(self, offset: int) -> None:
        while self._kept and self._base + len(self._kept[0]) <= offset:
            self._base += len(self._kept.popleft())

    async def digest(self, pool: Executor) -> str:
        return self._hash.hexdigest()


def _checked(block: Any) -> bytes:
    if not isinstance(block, bytes | bytearray | memoryview):
        raise UsageError(f"expected an iterator of bytes, got {type(block).__name__}")
    return bytes(block)


def open_source(payload: Any) -> tuple[Source, str, str]:
    """Return the source of a payload, with the name and content type that it suggests.

    A `str` is text and never a path; `dict` and `list` become JSON. Raises `UsageError` for what cannot be sent.
    """
    match payload:
        case Path():
            return _open_path(payload), payload.name, ""
        case bytes() | bytearray() | memoryview():
            return MemorySource(payload), "payload.bin", "application/octet-stream"
        case str():
            return MemorySource(payload.encode()), "message.txt", "text/plain; charset=utf-8"
        case dict() | list():
            text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            return MemorySource(text.encode()), "message.json", "application/json"
    if hasattr(payload, "read"):
        return _open_file(payload), _name_of(payload), ""
    if isinstance(payload, AsyncIterable):
        return IteratorSource(aiter(payload)), "payload.bin", "application/octet-stream"
    if isinstance(payload, Iterable):
        return IteratorSource(iter(payload)), "payload.bin", "application/octet-stream"
    raise UsageError(f"cannot send a {type(payload).__name__}: expected a path, bytes, text, JSON, file or iterator")


def _open_path(path: Path) -> Source:
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by the source
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    try:
        if not file.seekable():
            return IteratorSource(_pieces(file))
        return FileSource(file, str(path), own=True)
    except OSError as error:
        file.close()
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def _open_file(file: BinaryIO) -> Source:
    if isinstance(file, io.TextIOBase):
        raise UsageError("expected a binary file: open it with 'rb'")
    if getattr(file, "seekable", lambda: False)():
        return FileSource(file, _name_of(file), own=False)
    return IteratorSource(_pieces(file))


def _pieces(file: Any) -> Iterator[bytes]:
    read = getattr(file, "read1", file.read)
    while piece := read(262_144):
        yield piece


def _name_of(file: Any) -> str:
    name = getattr(file, "name", "")
    return os.path.basename(name) if isinstance(name, str) and name and not name.startswith("<") else "payload.bin"
