"""Saving a delivery as a file: each byte once and in place, across connections, processes and crashes.

In the target directory lies `.delivery/`: `<transfer>.part` holds the bytes, `<transfer>.json` how many of them were
made durable. When the digest agrees, the part is moved to its name, and the JSON file stays for 30 days as the receipt
that answers a repeated offer, should the server never have heard our `done`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from delivery.client.files import FOLDER, candidates, clean_name, sync_directory
from delivery.client.notes import Note, Sidecar, prune
from delivery.client.sinks import Saved
from delivery.errors import IntegrityError, StorageUnavailable, UsageError
from delivery.protocol.frames import CHUNK_SIZE_MIN
from delivery.reservation import reserve

try:
    import fcntl
except ImportError:  # Windows: two processes that save the same transfer are then not kept apart
    fcntl = None  # type: ignore[assignment]

WRITE_BYTES = 262_144  # larger writes are ten times slower on some kernels
RESERVE_BYTES = 16_777_216  # allocated at a time
SYNC_BYTES = 16_777_216
SYNC_SECONDS = 2.0
Result = TypeVar("Result")


class FileSink:
    """Saves one transfer in `directory`. Its blocking half runs in `pool`, one call at a time.

    Raises `UsageError` where another process is saving the same transfer there, `StorageUnavailable` where the disk
    does not take the bytes, `IntegrityError` where the digest differs.
    """

    full = False  # a disk is as fast as it is
    keeps_blocks = False

    def __init__(self, directory: Path, transfer: str, name: str, size: int | None, *, pool: Executor) -> None:
        self._directory = directory
        self._folder = directory / FOLDER
        self._part = self._folder / f"{transfer}.part"
        self._sidecar = Sidecar(self._folder / f"{transfer}.json", transfer)
        self._name = clean_name(name)
        self._pool = pool
        self._busy = asyncio.Lock()
        self._note = Note(transfer, size)
        self._file = -1
        self._position = 0
        self._reserved = 0  # byte up to which the file has its blocks
        self._hash = hashlib.sha256()
        self._synced_at = 0.0
        self._synced_to = 0  # byte below which all is durable, or being made so
        self._syncing: asyncio.Task[None] | None = None  # behind what is written meanwhile

    @property
    def position(self) -> int:
        return self._position

    async def open(self) -> Saved | None:
        return await self._call(self._open)

    async def write(self, blocks: Sequence[memoryview]) -> None:
        await self._call(lambda: self._write(blocks))
        if self._sync_due():
            await self._synced()
            self._syncing = asyncio.create_task(self._sync_behind(self._position))

    async def ready(self) -> None:
        pass

    async def finish(self, expected: set[str]) -> Saved:
        await self._synced()
        return await self._call(lambda: self._finish(expected))

    async def detach(self) -> None:
        await self._synced()
        await self._call(self._sync)

    async def close(self) -> None:
        """Make the position durable and let go of the file, which another process may then go on with."""
        try:
            await self._synced()
        finally:
            await self._call(self._close)

    async def discard(self) -> None:
        with contextlib.suppress(StorageUnavailable):
            await self._synced()
        await self._call(self._discard)

    def _sync_due(self) -> bool:
        pending = self._position - self._synced_to
        return pending >= SYNC_BYTES or (pending > 0 and time.monotonic() - self._synced_at >= SYNC_SECONDS)

    async def _synced(self) -> None:
        """Return when nothing is being made durable any more. Raises what that raised, once."""
        if (syncing := self._syncing) is None:
            return
        try:
            await asyncio.shield(syncing)
        finally:
            if syncing.done():
                self._syncing = None

    async def _sync_behind(self, position: int) -> None:
        """Make the bytes below `position` durable, and then say so; more is written meanwhile."""
        self._synced_at, self._synced_to = time.monotonic(), position
        with self._naming_failures():
            await asyncio.get_running_loop().run_in_executor(self._pool, self._make_durable, position)

    @contextlib.contextmanager
    def _naming_failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = error.filename or self._directory
            raise StorageUnavailable(f"cannot save into {where}: {error.strerror or error}") from error

    async def _call(self, work: Callable[[], Result]) -> Result:
        """Run `work` in a thread; being cancelled does not let the next call run beside it."""
        async with self._busy:
            job = asyncio.get_running_loop().run_in_executor(self._pool, work)
            try:
                with self._naming_failures():
                    return await asyncio.shield(job)
            except asyncio.CancelledError:
                await asyncio.wait([job])
                raise

    # -- in a thread -----------------------------------------------------------------------------------------------

    def _open(self) -> Saved | None:
        if self._file >= 0:
            return None
        self._folder.mkdir(parents=True, exist_ok=True)
        if (saved := self._receipt(self._sidecar.read())) is not None:
            return saved
        self._file = self._lock(os.open(self._part, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666))
        try:
            return self._find_position()
        except BaseException:
            self._release()
            raise

    def _find_position(self) -> Saved | None:
        note = self._sidecar.read()
        if (saved := self._receipt(note)) is not None:  # another process saved it while we came for the lock
            self._part.unlink(missing_ok=True)
            self._release()
            return saved
        if note is not None and note.state == "complete":
            self._note = note
            if os.fstat(self._file).st_size != note.size:  # moved already: what we opened is a new, empty part
                self._write_note(replace(note, state="saved"))
            return self._commit()
        there = os.fstat(self._file).st_size
        known = note.position if note and note.size == self._note.size else 0
        position = min(known, there)
        if position != self._note.size:
            position -= position % CHUNK_SIZE_MIN
        os.ftruncate(self._file, position)
        self._reserved = position
        self._position = self._rehash(position)
        self._note = replace(self._note, position=self._position)
        self._synced_at, self._synced_to = time.monotonic(), self._position
        return None

    def _lock(self, descriptor: int) -> int:
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                raise UsageError(f"{self._part} is being saved by somebody else: use another directory") from error
        return descriptor

    def _release(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write_note(self, note: Note, *, durable: bool = True) -> None:
        self._note = note
        self._sidecar.write(note, durable=durable)

    def _rehash(self, length: int) -> int:
        """Hash what an earlier process kept; return how many bytes that were."""
        self._hash = hashlib.sha256()
        buffer = memoryview(bytearray(WRITE_BYTES))
        at = 0
        os.lseek(self._file, 0, os.SEEK_SET)
        while at < length:
            count = os.readv(self._file, [buffer[: length - at]])
            if not count:
                raise OSError(errno.EIO, "the part became shorter", str(self._part))
            self._hash.update(buffer[:count])
            at += count
        return at

    def _write(self, blocks: Sequence[memoryview]) -> None:
        for block in blocks:
            self._reserve(self._position + len(block))
            self._hash_and_write(block)

    def _reserve(self, end: int) -> None:
        """Have room up to byte `end` and some more: allocating page by page is a third of what writing costs.

        Only where the size is known: nothing is to stay behind the end of the file.
        """
        size = self._note.size
        if size is None or end <= self._reserved or end > size:
            return
        begin = max(self._reserved, self._position)
        until = min(size, begin + RESERVE_BYTES)
        worth_it = until - begin > WRITE_BYTES
        self._reserved = until if worth_it and reserve(self._file, begin, until - begin) else size

    def _hash_and_write(self, block: memoryview) -> None:
        start = self._position
        os.lseek(self._file, start, os.SEEK_SET)
        while block:
            count = os.write(self._file, block[:WRITE_BYTES])
            # Hashed as far as it was written: should the disk fill up, both still agree with the position.
            self._hash.update(block[:count])
            self._position += count
            block = block[count:]

    def _sync(self) -> None:
        """Make the data durable first, and only then say so."""
        self._synced_at, self._synced_to = time.monotonic(), self._position
        if self._file >= 0 and self._position != self._note.position:
            self._make_durable(self._position)

    def _make_durable(self, position: int) -> None:
        _flush(self._file)
        self._write_note(replace(self._note, position=position), durable=False)

    def _close(self) -> None:
        try:
            self._sync()
        finally:
            self._release()

    def _finish(self, expected: set[str]) -> Saved:
        sha256 = self._hash.hexdigest()
        if expected - {sha256}:
            self._discard()
            raise IntegrityError(f"what was received has the SHA-256 {sha256}, another was announced")
        os.fsync(self._file)
        self._note = replace(self._note, position=self._position, size=self._position, state="complete", sha256=sha256)
        return self._commit()

    def _commit(self) -> Saved:
        """Move the part to its name, so that a crash at any point neither loses nor doubles it."""
        if self._note.state != "saved" and (self._note.path is None or not self._moved(Path(self._note.path))):
            for candidate in candidates(self._name):
                target = self._directory / candidate
                if os.path.lexists(target):
                    continue
                self._write_note(replace(self._note, path=str(target)))
                if _move(self._part, target):
                    break
        self._write_note(replace(self._note, state="saved"))
        sync_directory(self._directory)
        self._part.unlink(missing_ok=True)
        self._release()
        prune(self._folder)
        return self._saved(self._note)

    def _moved(self, target: Path) -> bool:
        """Return whether an earlier attempt, cut short, had given the part its name already."""
        try:
            return os.path.samestat(os.stat(target), os.fstat(self._file))
        except FileNotFoundError:
            return False

    def _receipt(self, note: Note | None) -> Saved | None:
        return self._saved(note) if note is not None and note.state == "saved" else None

    @staticmethod
    def _saved(note: Note) -> Saved:
        if note.path is None or note.sha256 is None or note.size is None:
            raise IntegrityError(f"the receipt of {note.transfer} is incomplete")
        return Saved(note.size, note.sha256, Path(note.path))

    def _discard(self) -> None:
        self._release()
        self._part.unlink(missing_ok=True)
        self._sidecar.remove()
        self._position = 0
        self._hash = hashlib.sha256()
        self._note = Note(self._note.transfer, self._note.size)


def _flush(descriptor: int) -> None:
    getattr(os, "fdatasync", os.fsync)(descriptor)


def _move(part: Path, target: Path) -> bool:
    """Give the part its name without ever replacing a file; return False where the name was taken meanwhile."""
    try:
        os.link(part, target)
    except FileExistsError:
        return False
    except OSError:
        # No hard links on this file system: claim the name with an empty file, and replace that.
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            return False
        os.replace(part, target)
    return True
