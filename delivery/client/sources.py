"""Where the bytes of an upload come from: a file, memory, or an iterator whose length nobody knows.

A source is read by offset, as often as a resume asks; an iterator keeps what no ack covers yet. It computes the
SHA-256 of the payload on the way. It knows nothing of chunks and connections.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import json
import os
import stat
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from delivery.client.producers import (
    INSTANT_BYTES,
    AsyncProducer,
    Producer,
    ThreadProducer,
    open_and_read,
    read_forwards,
)
from delivery.errors import IntegrityError, UsageError

HASH_PIECE_BYTES = 1_048_576

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
    """The bytes of one payload. `size` in bytes, None until known; `instant`: reading takes no thread.

    `producer`: what pulls the blocks of an iterator, None for everything else. It ends with the upload, by its `aclose`.
    """

    instant = False
    producer: Producer | None = None

    def __init__(self, size: int | None) -> None:
        self.size = size

    async def prepare(self, end: int, pool: Executor) -> None:
        """Make the bytes below `end` readable, fewer where it ends before. Cancelling it loses nothing."""

    @property
    def pulled(self) -> int:
        """How many bytes can be read while `size` is unknown."""
        return self.size or 0

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill `view` from byte `offset` on; return how many bytes there were, fewer only at the end. Any thread."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise `IntegrityError` where the source is no longer what it was when it was opened."""

    def forget(self, offset: int) -> None:
        """Note that bytes below `offset` will not be read again."""

    async def digest(self, pool: Executor) -> str:
        """Return the SHA-256 of the whole payload, hex. An iterator is pulled to its end, where that is not known yet."""
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
    thread reads and hashes the whole rest on the side. Threads of lost connections may still be reading meanwhile.
    """

    def __init__(self, file: BinaryIO, name: str, *, own: bool) -> None:
        self._file = file
        self._own = own
        self._name = name
        self._start = 0 if own else file.tell()
        super().__init__(file.seek(0, os.SEEK_END) - self._start)
        self._place = threading.Lock()  # of the file's position
        self._descriptor = file.fileno() if own and hasattr(os, "preadv") else None
        self._watched = _descriptor_of(file)
        self._stamp = self._look()
        self._hash = hashlib.sha256()
        self._hashed = 0
        self._hashing = threading.Lock()  # of the two above
        self._aside: asyncio.Future[None] | None = None
        self._readers = 0
        self._closed = False
        self._leaving = threading.Lock()  # of the two above

    def read_into(self, view: memoryview, offset: int) -> int:
        with self._reading():
            length = self._read(view, offset)
        if self._aside is None:
            self._hash_next(view[:length], offset)
        return length

    def _hash_next(self, data: memoryview, offset: int) -> None:
        """Hash what continues the hash, if `data` from byte `offset` on does; another thread may have been quicker."""
        with self._hashing:
            if offset <= self._hashed < offset + len(data):
                self._hash.update(data[self._hashed - offset :])
                self._hashed = offset + len(data)

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
        with self._place:
            self._file.seek(self._start + offset)
            piece = self._file.read(len(view))
        view[: len(piece)] = piece
        return len(piece)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Keep the file open meanwhile: else its descriptor may be another file's. Raises `OSError` once it is closed."""
        with self._leaving:
            if self._closed:
                raise OSError(errno.EBADF, "the file is closed")
            self._readers += 1
        try:
            yield
        finally:
            with self._leaving:
                self._readers -= 1
                last = self._closed and not self._readers
            if last and self._own:
                self._file.close()

    def check(self) -> None:
        if self._look() != self._stamp:
            raise IntegrityError(f"{self._name} changed while it was sent: send it again")

    def _look(self) -> tuple[int, int] | None:
        if self._watched is None:
            return None
        found = os.fstat(self._watched)
        return found.st_size, found.st_mtime_ns

    def resumed_at(self, offset: int, pool: Executor) -> None:
        if offset > self._hashed and self._aside is None:
            self._aside = asyncio.get_running_loop().run_in_executor(pool, self._hash_rest)
            # Nobody waits for it where the upload ends first.
            self._aside.add_done_callback(lambda aside: aside.cancelled() or aside.exception())

    def _hash_rest(self) -> None:
        buffer = memoryview(bytearray(HASH_PIECE_BYTES))
        while not self._closed:
            offset = self._hashed
            with self._reading():
                length = self._read(buffer, offset)
            if not length:
                return
            self._hash_next(buffer[:length], offset)

    async def digest(self, pool: Executor) -> str:
        if self._hashed != self.size and self._aside is None:
            self.resumed_at(self._hashed + 1, pool)
        if self._aside is not None:
            await asyncio.shield(self._aside)
        if self._hashed != self.size:
            raise IntegrityError(f"{self._name} has {self._hashed} bytes, {self.size} were expected: it changed")
        return self._hash.hexdigest()

    def close(self) -> None:
        with self._leaving:
            first, self._closed = not self._closed, True
            unused = not self._readers
        if first and unused and self._own:
            self._file.close()


def _descriptor_of(file: BinaryIO) -> int | None:
    """Return the descriptor of a file of the system, None for everything that is only like one."""
    raw = getattr(file, "raw", file)
    return raw.fileno() if isinstance(raw, io.FileIO) else None


class IteratorSource(Source):
    """Blocks of bytes from an iterator; what no ack covers yet is kept, at most one window.

    It is never advanced further than asked for, and only by the producer, whose one pull no connection cancels.
    """

    producer: Producer

    def __init__(self, blocks: Iterator[bytes] | AsyncIterator[bytes]) -> None:
        super().__init__(None)
        self._kept: deque[bytes] = deque()
        self._base = 0  # offset of the first kept byte
        self._end = 0  # offset behind the last byte that was pulled
        self._forgotten = 0  # offset below which nothing is read again
        self.instant = True
        if isinstance(blocks, AsyncIterator):
            self.producer = AsyncProducer(blocks, self._take)
        else:
            self.producer = ThreadProducer(blocks, self._take)

    @property
    def pulled(self) -> int:
        return self._end

    async def prepare(self, end: int, pool: Executor) -> None:
        while self._end < end and self.size is None:
            await self.producer.pull(pool)

    def _take(self, block: bytes | None) -> None:
        if block is None:
            self.size = self._end
        else:
            self._end += len(block)
            self._kept.append(block)
            self._drop_forgotten()

    def read_into(self, view: memoryview, offset: int) -> int:
        if offset < self._base:
            raise IntegrityError(f"an iterator cannot go back to byte {offset}: it is kept from {self._base} on")
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
        self._forgotten = max(self._forgotten, offset)
        self._drop_forgotten()

    def _drop_forgotten(self) -> None:
        while self._kept and self._base + len(self._kept[0]) <= self._forgotten:
            self._base += len(self._kept.popleft())

    async def digest(self, pool: Executor) -> str:
        while self.size is None:  # the server has all of it: what is left is pulled for its digest alone
            self.forget(self._end)
            await self.producer.pull(pool)
        return self.producer.sha256.hexdigest()


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
            return MemorySource(_utf8(payload)), "message.txt", "text/plain; charset=utf-8"
        case dict() | list():
            return MemorySource(_json(payload)), "message.json", "application/json"
    if hasattr(payload, "read"):
        return _open_file(payload), _name_of(payload), ""
    if isinstance(payload, AsyncIterable):
        return IteratorSource(aiter(payload)), "payload.bin", "application/octet-stream"
    if isinstance(payload, Iterable):
        return IteratorSource(iter(payload)), "payload.bin", "application/octet-stream"
    raise UsageError(f"cannot send a {type(payload).__name__}: expected a path, bytes, text, JSON, file or iterator")


def _json(value: dict[str, Any] | list[Any]) -> bytes:
    try:
        return _utf8(json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot write this as JSON: {error}") from error


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise UsageError("cannot send text that holds half of a surrogate pair") from None


def _open_path(path: Path) -> Source:
    try:
        if not _has_size(path.stat().st_mode):
            return IteratorSource(open_and_read(path))
        file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by the source
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    try:
        return FileSource(file, str(path), own=True)
    except OSError as error:
        file.close()
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def _open_file(file: BinaryIO) -> Source:
    if isinstance(file, io.TextIOBase):
        raise UsageError("expected a binary file: open it with 'rb'")
    descriptor = _descriptor_of(file)
    sized = descriptor is None or _has_size(os.fstat(descriptor).st_mode)
    if sized and getattr(file, "seekable", lambda: False)():
        return FileSource(file, _name_of(file), own=False)
    return IteratorSource(read_forwards(file))


def _has_size(mode: int) -> bool:
    """Return whether seeking tells the size: a character device says 0, and has more."""
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode) or stat.S_ISDIR(mode)  # a folder says what is wrong when opened


def _name_of(file: Any) -> str:
    name = getattr(file, "name", "")
    return os.path.basename(name) if isinstance(name, str) and name and not name.startswith("<") else "payload.bin"
