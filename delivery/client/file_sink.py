"""Saving a delivery as a file: each byte once and in place, across connections, processes and crashes.

In the target directory lies `.delivery/`: `<transfer>.part` holds the bytes, `<transfer>.json` how many of them were
made durable. When the digest agrees, the part is moved to its name, and the JSON file stays for 30 days as the receipt
that answers a repeated offer, should the server never have heard our `done`.

Others may do anything to these files meanwhile: a cleaner removes a part, a person takes a name. A receipt is written
only where the file under the name is the one that we wrote and hashed; else the save fails, or all is received again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from delivery.client import placement
from delivery.client.files import sync_directory, try_lock
from delivery.client.placement import candidates, clean_name, longest_name
from delivery.client.receiving_directory import FOLDER, Note, Sidecar, prune
from delivery.client.sinks import Saved
from delivery.errors import IntegrityError, StorageUnavailable, UsageError
from delivery.protocol.frames import CHUNK_SIZE_MIN
from delivery.reservation import reserve

WRITE_BYTES = 262_144  # larger writes are ten times slower on some kernels
RESERVE_BYTES = 16_777_216  # allocated at a time
SYNC_BYTES = 16_777_216
SYNC_SECONDS = 2.0
OPEN_ATTEMPTS = 100
Result = TypeVar("Result")


class FileSink:
    """Saves one transfer in `directory`. Its blocking half runs in `pool`, one call at a time. `expires`: ISO 8601.

    Raises `UsageError` where another process is saving the same transfer there, `StorageUnavailable` where the disk
    does not take the bytes, `IntegrityError` where the digest differs.
    """

    full = False  # a disk is as fast as it is
    keeps_blocks = False

    def __init__(
        self,
        directory: Path,
        transfer: str,
        name: str,
        size: int | None,
        *,
        pool: Executor,
        expires: str | None = None,
    ) -> None:
        self._directory = directory
        self._folder = directory / FOLDER
        self._part = self._folder / f"{transfer}.part"
        self._sidecar = Sidecar(self._folder / f"{transfer}.json", transfer)
        self._name = name
        self._pool = pool
        self._busy = asyncio.Lock()
        self._note = Note(transfer, size, expires=expires)
        self._file = -1
        self._position = 0
        self._reserved = 0  # byte up to which the file has its blocks
        self._unsure = False  # whether what was written may not be there: the note goes no further then
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
        if not os.path.lexists(self._part) and (saved := self._receipt(self._sidecar.read())) is not None:
            return saved
        self._file = self._open_part()
        try:
            return self._find_position()
        except BaseException:
            self._release()
            raise

    def _find_position(self) -> Saved | None:
        note = self._sidecar.read()
        if (saved := self._receipt(note)) is not None:  # of a process that was killed, or saved it while we came here
            self._remove_part()
            return saved
        if note is not None and note.state == "complete":
            return self._take_up(note)
        there = os.fstat(self._file).st_size
        known = note.position if note and note.state == "partial" and note.size == self._note.size else 0
        position = min(known, there)
        if position != self._note.size:
            position -= position % CHUNK_SIZE_MIN
        self._begin(position)
        return None

    def _begin(self, position: int) -> None:
        """Go on from byte `position`, and forget what the part has behind it."""
        os.ftruncate(self._file, position)
        self._reserved = position
        self._hash = _sha256(self._file, position)
        self._position = position
        self._note = replace(self._note, position=position)
        self._synced_at, self._synced_to = time.monotonic(), position

    def _take_up(self, note: Note) -> Saved | None:
        """Go on with moving what an earlier process received whole; None where it must all be received again.

        That process may have been killed at any step, and others may have changed the files since: they are hashed.
        """
        target = self._target(note)
        ours = placement.is_file_of(target, self._file)
        if not ours and _holds(target, note):  # moved already: what we opened is a new, empty part
            return self._say_saved(note)
        if note.size == os.fstat(self._file).st_size and _sha256(self._file, note.size).hexdigest() == note.sha256:
            self._note, self._position = note, note.size
            if note.claimed and not ours:
                placement.remove_claim(target)
            return self._commit()
        if ours:  # it had its name, and was changed before it had its receipt
            target.unlink()
        elif note.claimed:
            placement.remove_claim(target)
        self._sidecar.remove()
        self._begin(0)
        return None

    def _open_part(self) -> int:
        """Open and lock the part: not one that another process removed before we had the lock."""
        # Appending: where another process changes its length between our look and our write, the two differ for good.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        for _ in range(OPEN_ATTEMPTS):
            descriptor = os.open(self._part, flags, 0o666)
            try:
                if not try_lock(descriptor):
                    raise UsageError(f"{self._part} is being saved by somebody else: use another directory")
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError(errno.EINVAL, "it is no regular file", str(self._part))
                if placement.is_file_of(self._part, descriptor):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
        raise OSError(errno.EIO, "other processes keep replacing it", str(self._part))

    def _release(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write_note(self, note: Note, *, durable: bool = True) -> None:
        self._note = note
        self._sidecar.write(note, durable=durable)

    def _write(self, blocks: Sequence[memoryview]) -> None:
        self._check_part()
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
        while block:
            self._check_length(os.lseek(self._file, 0, os.SEEK_END))
            count = os.write(self._file, block[:WRITE_BYTES])
            # Hashed as far as it was written: should the disk fill up, both still agree with the position.
            self._hash.update(block[:count])
            self._position += count
            block = block[count:]

    def _sync(self) -> None:
        """Make the data durable first, and only then say so."""
        self._synced_at, self._synced_to = time.monotonic(), self._position
        if self._file >= 0 and self._position != self._note.position and not self._unsure:
            self._make_durable(self._position)

    def _check_length(self, there: int) -> None:
        if there != self._position:
            raise self._spoilt(f"another process changed it: {there} bytes, not {self._position}")

    def _check_part(self) -> None:
        """Raise `OSError` where the part is no longer the file that we write."""
        if not os.path.lexists(self._part):
            raise self._spoilt("another process removed it")
        if not placement.is_file_of(self._part, self._file):
            raise self._spoilt("another process replaced it")

    def _spoilt(self, why: str) -> OSError:
        """Forget how far we are, since nothing of it can be trusted; return the error to raise."""
        self._unsure = True
        self._sidecar.remove()
        return OSError(errno.EIO, why, str(self._part))

    def _make_durable(self, position: int) -> None:
        self._check_part()
        try:
            _flush(self._file)
        except OSError:
            self._unsure = True  # a second flush may succeed although the first one dropped what it could not write
            raise
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
        self._check_length(os.fstat(self._file).st_size)
        if self._unsure:
            raise OSError(errno.EIO, "not all of it could be made durable", str(self._part))
        os.fsync(self._file)
        self._note = replace(self._note, position=self._position, size=self._position, state="complete", sha256=sha256)
        return self._commit()

    def _commit(self) -> Saved:
        """Move the part to its name, so that a crash at any point neither loses nor doubles it."""
        target = self._target(self._note)
        if self._note.path is not None and placement.is_file_of(target, self._file):
            self._check_target(target)
        else:
            self._place()
        return self._say_saved(self._note)

    def _place(self) -> None:
        """Give the part the first name that is free."""
        for candidate in candidates(clean_name(self._name, longest_name(self._directory))):
            target = self._directory / candidate
            if os.path.lexists(target):
                continue
            self._check_part()
            self._write_note(replace(self._note, path=str(target), claimed=False))
            if self._move(target):
                self._check_target(target)
                return

    def _move(self, target: Path) -> bool:
        try:
            return placement.link(self._part, target)
        except OSError as error:
            if not placement.has_no_hard_links(error):
                raise
        self._write_note(replace(self._note, claimed=True))  # for the next process, should this one be killed
        return placement.claim_and_rename(self._part, target)

    def _check_target(self, target: Path) -> None:
        """Raise `OSError` unless the file under the name is the one that we wrote, all of it."""
        if placement.is_file_of(target, self._file):
            there = os.fstat(self._file).st_size
            if there != self._position:
                target.unlink()
            self._check_length(there)
        elif not _holds(target, self._note):  # not all file systems give a file one number for all its names
            if placement.is_same(self._part, target):
                target.unlink()
            raise self._spoilt("another process replaced it")

    def _say_saved(self, note: Note) -> Saved:
        """Write the receipt: the file is there under its name, and also after a power cut."""
        sync_directory(self._directory)
        self._write_note(replace(note, state="saved", claimed=False, expires=None))
        with contextlib.suppress(
            OSError
        ):  # it is saved all the same; whoever looks through the folder removes the part
            self._remove_part()
        self._release()
        prune(self._folder)
        return self._saved(self._note)

    def _target(self, note: Note) -> Path:
        # The note may have come here with its directory, or name it from another working directory.
        return self._directory / Path(note.path or clean_name(self._name)).name

    def _receipt(self, note: Note | None) -> Saved | None:
        """Return what an earlier process saved; None where the file under the name is something else now.

        A file that is gone was moved away by whom it is for: its receipt stands.
        """
        if note is None or note.state != "saved":
            return None
        target = self._target(note)
        return self._saved(note) if not os.path.lexists(target) or _holds(target, note) else None

    def _saved(self, note: Note) -> Saved:
        if note.sha256 is None or note.size is None:
            raise StorageUnavailable(f"the receipt of {note.transfer} is incomplete")
        return Saved(note.size, note.sha256, self._target(note))

    def _remove_part(self) -> None:
        """Remove the part and let go of it, in this order: another process may not lock what is about to go."""
        if os.name == "nt":  # which removes no file that is open
            self._release()
        self._part.unlink(missing_ok=True)
        self._release()

    def _discard(self) -> None:
        self._remove_part()
        self._sidecar.remove()
        self._position = 0
        self._hash = hashlib.sha256()
        self._note = Note(self._note.transfer, self._note.size, expires=self._note.expires)


def _flush(descriptor: int) -> None:
    getattr(os, "fdatasync", os.fsync)(descriptor)


def _sha256(descriptor: int, length: int) -> hashlib._Hash:
    """Hash the first `length` bytes of an open file. Raises `OSError` where it has fewer."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(WRITE_BYTES))
    os.lseek(descriptor, 0, os.SEEK_SET)
    while length:
        count = os.readv(descriptor, [buffer[:length]])
        if not count:
            raise OSError(errno.EIO, "it became shorter")
        digest.update(buffer[:count])
        length -= count
    return digest


def _holds(path: Path, note: Note) -> bool:
    """Return whether the file at `path` is all that the note says, by its SHA-256."""
    try:
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size != note.size:
            return False
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            return _sha256(descriptor, note.size).hexdigest() == note.sha256
        finally:
            os.close(descriptor)
    except OSError:  # what cannot be read is not known to be it
        return False
