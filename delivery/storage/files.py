"""Files in a Django Storage: written from chunks, read by offset, deleted when nobody needs them.

Every failure of a backend comes out as `StorageUnavailable`.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import logging
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

from django.core.exceptions import SuspiciousOperation
from django.core.files.base import File
from django.core.files.storage import FileSystemStorage, InvalidStorageError, Storage, storages

from delivery.errors import DeliveryError, IntegrityError, StorageUnavailable, StoredFileMissing
from delivery.reservation import reserve

# Top packages of the SDKs behind storage backends. Their errors share no base class.
SDKS = frozenset({"azure", "boto3", "botocore", "dropbox", "google", "libcloud", "paramiko", "s3transfer", "urllib3"})
logger = logging.getLogger(__name__)

NOT_FOUND = 404
MOST_NAME = 500  # characters, as long as a segment's column
_OUR_NAME = re.compile(r"[0-9]+-[0-9]+-")
PIECE_BYTES = 256 * 1024  # files are read and written in pieces of this size: larger ones are slower


def storage(alias: str) -> Storage:
    """Return the storage that STORAGES names `alias`. Raises `StorageUnavailable` where there is none any more."""
    try:
        return storages[alias]
    except InvalidStorageError as error:
        raise StorageUnavailable(f"STORAGES has no {alias!r}") from error


@contextlib.contextmanager
def reporting() -> Iterator[None]:
    """Turn a backend's failures into `StorageUnavailable`. Ours pass through, and so do programming errors.

    A backend's "no such file" becomes `StoredFileMissing`.
    """
    try:
        yield
    except DeliveryError:
        raise
    except Exception as error:
        of_sdk = type(error).__module__.partition(".")[0] in SDKS
        if not of_sdk and not isinstance(error, OSError | SuspiciousOperation):
            raise
        kind = StoredFileMissing if _says_missing(error) else StorageUnavailable
        raise kind(f"storage: {type(error).__name__}") from error


def _says_missing(error: Exception) -> bool:
    """Return whether a backend's error means that there is no such file: FileNotFoundError, or 404 of an object."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore's ClientError
        code = response.get("Error", {}).get("Code")
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return code != "NoSuchBucket" and (code in {"404", "NoSuchKey", "NotFound"} or status == NOT_FOUND)
    return isinstance(error, FileNotFoundError) or NOT_FOUND in (
        getattr(error, "code", None),  # google's
        getattr(error, "status_code", None),  # azure's
    )


class StreamFile(File):  # type: ignore[type-arg]
    """A file for `Storage.save` whose bytes come from an iterator, once, without being joined.

    `taken`: how many bytes were read. A storage that reads it a second time, as a retry, gets an error: it would
    otherwise store a shorter file.
    """

    def __init__(self, pieces: Iterator[bytes], size: int) -> None:
        super().__init__(None)
        self.size = size
        self.taken = 0
        self._pieces = self._counted(pieces)
        self._rest = b""
        self._begun = False
        self.mode = "rb"

    def _counted(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self.taken += len(piece)
            yield piece

    def chunks(self, chunk_size: int | None = None) -> Iterator[bytes]:
        if self._begun:
            raise io.UnsupportedOperation("the storage reads a file twice that can be read once")
        self._begun = True
        if self._rest:
            rest, self._rest = self._rest, b""
            yield rest
        yield from self._pieces

    def read(self, size: int | None = -1) -> bytes:  # for backends that do not ask for chunks
        pieces, length = [self._rest], len(self._rest)
        self._rest = b""
        while size is None or size < 0 or length < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            pieces.append(piece)
            length += len(piece)
        data = b"".join(pieces)
        if size is None or size < 0 or length <= size:
            return data
        self._rest = data[size:]
        return data[:size]

    def seekable(self) -> bool:
        return False

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return int(self.size)


def folder(payload: UUID) -> str:
    """Return the folder of a payload's files."""
    return str(payload)


def write(alias: str, payload: UUID, offset: int, lease: int, pieces: Iterator[bytes], size: int) -> str:
    """Store `size` bytes under a name that no other attempt uses; return the name that Storage chose.

    What `pieces` raises comes out unchanged; a file that did not become whole is deleted. Raises `StorageUnavailable`.
    """
    wanted = f"{folder(payload)}/{offset}-{lease}-{secrets.token_hex(6)}"
    try:
        with reporting():
            target = storage(alias)
            stream = StreamFile(_making_room(target, wanted, pieces, size), size)
            stored = wanted = target.save(wanted, stream)
        if stream.taken != size or len(stored) > MOST_NAME:
            raise StorageUnavailable(f"storage took {stream.taken} of {size} bytes, under a name of {len(stored)}")
    except BaseException:
        delete(alias, wanted)  # a full disk leaves part of a file under its final name
        raise
    return stored


def _making_room(target: Storage, name: str, pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Yield the pieces; once the first is written, allocate the disk blocks of the others in one call.

    Allocating them page by page is two fifths of the cost of writing (files of 16 MiB on ext4). Only for a storage that
    writes the given bytes unchanged.
    """
    for first in pieces:
        yield first
        if len(first) < size and isinstance(target, FileSystemStorage) and _writes_plainly(target):
            with contextlib.suppress(OSError), open(target.path(name), "r+b") as file:
                reserve(file.fileno(), 0, size)
        break
    yield from pieces


def _writes_plainly(target: FileSystemStorage) -> bool:
    """Return whether a storage writes bytes unchanged, as Django's own does: one that compresses needs less room."""
    kind = type(target)
    return kind.save is FileSystemStorage.save and kind._save is FileSystemStorage._save  # type: ignore[attr-defined]


def delete(alias: str, name: str) -> bool:
    """Delete a file; return whether Storage took the call. A file that is gone already is fine; the sweep looks again.

    Never raises, whatever a backend does: callers are ending a transfer or handling an error.
    """
    try:
        with reporting():
            storage(alias).delete(name)
    except StoredFileMissing:
        return True
    except StorageUnavailable:
        return False
    except Exception:
        logger.exception("storage %r does not delete a file", alias)
        return False
    return True


def delete_folder(alias: str, payload: UUID) -> None:
    """Remove the folder of a payload once it is empty, where folders exist. Never raises."""
    delete(alias, folder(payload))


def names(alias: str, payload: UUID) -> list[str]:
    """Return the names of all files in a payload's folder; none where Storage can't list. Raises `StorageUnavailable`."""
    with reporting():
        try:
            found = storage(alias).listdir(folder(payload))[1]
        except (FileNotFoundError, NotImplementedError):
            return []
    return [f"{folder(payload)}/{name}" for name in found]


def folders(alias: str) -> list[UUID]:
    """Return the payloads that have a folder. Raises `StorageUnavailable`."""
    with reporting():
        try:
            found = storage(alias).listdir("")[0]
        except (FileNotFoundError, NotImplementedError):
            return []
    return [UUID(name) for name in found if _is_uuid(name)]


def is_ours(name: str) -> bool:
    """Return whether a name in a payload's folder may be one that `write` asked for; Storage may have added to it."""
    return _OUR_NAME.match(name.rpartition("/")[2]) is not None


def _is_uuid(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False


def modified(alias: str, name: str) -> datetime.datetime | None:
    """Return when a file was written, None where Storage cannot say."""
    with reporting():
        try:
            return storage(alias).get_modified_time(name)
        except (FileNotFoundError, NotImplementedError):
            return None


def is_there(alias: str, name: str) -> bool:
    """Return whether Storage has a file. Raises `StorageUnavailable` where it does not say."""
    try:
        with reporting():
            try:
                storage(alias).size(name)  # not `exists`, which some backends answer by their settings
            except NotImplementedError:
                return storage(alias).exists(name)
    except StoredFileMissing:
        return False
    return True


def root_answers(alias: str) -> bool:
    """Return whether a storage lists its root. An empty folder does not count: it is what an unmounted volume leaves."""
    try:
        with reporting():
            found = storage(alias).listdir("")
    except NotImplementedError:
        return True
    except StorageUnavailable:
        return False
    return any(found) or not isinstance(storage(alias), FileSystemStorage)


def look(alias: str, name: str) -> str:
    """Return what Storage says of a file without reading it: name, size and time, as far as it can tell.

    Raises `StorageUnavailable`, also where there is no such file.
    """
    with reporting():
        size: int | None = None
        with contextlib.suppress(NotImplementedError):
            size = storage(alias).size(name)
    return f"{name} {size} {modified(alias, name)}"


def read(alias: str, name: str, offset: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
    """Yield `length` bytes of a file from `offset` on, as views into `buffer`, each valid until the next.

    Raises `StorageUnavailable` if the file does not open, and `IntegrityError` if it ends early: waiting does not bring
    lost bytes back.
    """
    with opened(alias, name, offset) as raw:
        while length:
            got = raw.readinto(buffer[: min(length, len(buffer))])
            if not got:
                raise _early(length)
            length -= got
            yield buffer[:got]


def read_bytes(alias: str, name: str, offset: int, length: int) -> Iterator[bytes]:
    """Do what `read` does, but yield copies, of at most 256 KiB each."""
    with opened(alias, name, offset) as raw:
        while length:
            piece = raw.read(min(length, PIECE_BYTES))
            if not piece:
                raise _early(length)
            length -= len(piece)
            yield piece


def _early(length: int) -> IntegrityError:
    return IntegrityError(f"a stored file ends {length} bytes early")


@contextlib.contextmanager
def opened(alias: str, name: str, offset: int) -> Iterator[Any]:
    """Open a file to be read from `offset` on: by `read(size)`, or by `readinto(buffer)`. Raises `StorageUnavailable`."""
    with reporting(), contextlib.closing(storage(alias).open(name, "rb")) as file:
        raw: Any = _unbuffered(file)
        raw.seek(offset)
        yield raw


def _unbuffered(file: Any) -> Any:
    """Return what reads into a buffer of ours: the raw file of a local one, else an adapter around `read`."""
    inner = getattr(file, "file", file)
    raw = getattr(inner, "raw", inner)
    if isinstance(raw, io.FileIO):
        return raw
    return inner if hasattr(inner, "readinto") else _Readinto(file)


class _Readinto:
    """Gives `readinto` to a file of a backend that has only `read`."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def seek(self, offset: int) -> None:
        self._file.seek(offset)

    def read(self, size: int) -> bytes:
        data: bytes = self._file.read(size)
        return data

    def readinto(self, buffer: memoryview) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
