"""The API for site code: `deliver()`, `adeliver()`, and the verbs of a payload: open, attach, discard, url.

`deliver()` copies to Storage before any lock is taken and writes rows last, in one transaction. It runs in the calling
thread; `adeliver` runs it in a thread of its own. `models` imports this module lazily, inside the methods of `Payload`.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import logging
import mimetypes
import time
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias
from uuid import UUID, uuid4

from asgiref.sync import sync_to_async
from django.core import signing
from django.core.files.base import File
from django.db import connections, models
from django.db.models.fields.files import FieldFile
from django.urls import NoReverseMatch, reverse

from delivery import conf, dispatch, policy
from delivery.errors import BufferUnavailable, UsageError
from delivery.models import Payload, PayloadState, Segment
from delivery.policy import Group
from delivery.storage import aliases, files
from delivery.storage.payloads import PayloadFile
from delivery.transfers import admission, attachments, inline, outcomes, recipients, sql, timeline
from delivery.transfers.recipients import Recipients
from delivery.transfers.segments import insert_payload

logger = logging.getLogger(__name__)

# A string: Django's File cannot be subscripted at run time.
Source: TypeAlias = "bytes | bytearray | memoryview | str | Mapping[str, Any] | list[Any] | Path | IO[bytes] | File[Any] | Iterable[bytes]"
WARN_BYTES = 8 * 1024 * 1024
READ_BYTES = 256 * 1024
LINK_SALT = "delivery.link"


def deliver(
    payload: Source,
    to: Any = (),
    *,
    name: str | None = None,
    content_type: str | None = None,
    meta: Mapping[str, str] | None = None,
    expires: datetime.timedelta | None = None,
) -> Payload:
    """Deliver a payload to recipients, or keep it for the site where `to` is empty.

    `payload`: bytes, str (text, never a path), dict or list (JSON), Path, a binary file, a Django File, an iterator of
    bytes, or a complete payload, which is copied with its name and type. A FieldFile whose storage is in STORAGES is
    delivered in place, never copied: it is offered once a task has computed its digest. `to`: a user, `group(name)`, an address, a queryset of users, or a list of these. `expires`:
    counted from completion; 7 days by default, never for the site itself.

    Recipients hear of it when the surrounding transaction commits; a rollback leaves neither rows nor files. Raises
    `UsageError` for what cannot be delivered, `StorageUnavailable`, `PolicyUnavailable` where the policy fails over a group.
    No limit of a user applies: this is the site's own code.
    """
    addresses = _addresses(to)
    described = _Description(payload, name, content_type)
    row = Payload(
        name=admission.clean_name(described.name),
        content_type=admission.clean_type(described.content_type),
        meta=dict(meta or {}),
        lifetime=expires,
        keep=not addresses and expires is None,
    )
    in_place = _in_place(payload)
    if in_place is not None:
        return _reference(row, addresses, *in_place)
    return _copy(row, addresses, _pieces(payload))


async def adeliver(payload: Source, to: Any = (), **options: Any) -> Payload:
    """Do what `deliver` does, in a thread of its own. Cancelling leaves it running to its end."""
    return await sync_to_async(_deliver_and_close, thread_sensitive=False)(payload, to, options)


def _deliver_and_close(payload: Source, to: Any, options: dict[str, Any]) -> Payload:
    try:
        return deliver(payload, to, **options)
    finally:
        connections.close_all()


# -- what is delivered ---------------------------------------------------------------------------------------------


class _Description:
    """The name and type of a source, where the caller gave none."""

    def __init__(self, payload: Source, name: str | None, content_type: str | None) -> None:
        own = getattr(payload, "name", "")
        self.name = name if name is not None else Path(own).name if isinstance(own, str) else ""
        self.content_type = content_type or self._guess(payload)

    def _guess(self, payload: Source) -> str:
        if isinstance(payload, str):
            return "text/plain; charset=utf-8"
        if isinstance(payload, Mapping | list):
            return "application/json"
        if isinstance(payload, Payload):
            return payload.content_type
        return mimetypes.guess_type(self.name)[0] or "application/octet-stream"


def _pieces(payload: Source) -> Iterator[bytes]:
    """Yield the bytes of a source."""
    match payload:
        case bytes() | bytearray() | memoryview():
            yield from _slices(memoryview(payload).cast("B"))
        case str():
            yield from _slices(memoryview(payload.encode()))
        case Mapping() | list():
            yield from _slices(memoryview(json.dumps(payload).encode()))
        case Payload():
            with payload.open() as stored:
                yield from _read(stored)
        case Path():
            with payload.open("rb") as file:
                yield from _read(file)
        case File():
            yield from _read(payload.open("rb"))
        case _ if hasattr(payload, "read"):
            yield from _read(payload)
        case _ if isinstance(payload, Iterable):
            for piece in payload:
                if not isinstance(piece, bytes | bytearray | memoryview):
                    raise UsageError(f"expected an iterator of bytes, it gave {type(piece).__name__}")
                yield from _slices(memoryview(piece).cast("B"))
        case _:
            raise UsageError(f"cannot deliver a {type(payload).__name__}")


def _slices(data: memoryview) -> Iterator[bytes]:
    for start in range(0, len(data), files.PIECE_BYTES):
        yield bytes(data[start : start + files.PIECE_BYTES])


def _read(file: Any) -> Iterator[bytes]:
    while piece := file.read(files.PIECE_BYTES):
        if not isinstance(piece, bytes):
            raise UsageError("expected a file opened in binary mode")
        yield piece


# -- copied --------------------------------------------------------------------------------------------------------


class _Copy:
    """Bytes of a source on their way into Storage: counted, hashed, cut into segments."""

    def __init__(self, payload: UUID, pieces: Iterator[bytes]) -> None:
        options = conf.current()
        self.segments: list[Segment] = []
        self.digest = hashlib.sha256()
        self.size = 0
        self.inline: bytes | None = None
        self._payload = payload
        self._alias = options.storage
        self._limit = options.segment_size
        self._pieces = pieces

    def run(self) -> None:
        """Copy everything. If it raises, `segments` holds what it had stored."""
        limit = conf.current().inline_limit
        head = self._head(limit)
        if self.size <= limit:
            self.inline = head
        else:
            self._store(head)

    def _head(self, limit: int) -> bytes:
        head = bytearray()
        for piece in self._pieces:
            self._count(piece)
            head += piece
            if self.size > limit:
                break
        return bytes(head)

    def _count(self, piece: bytes) -> None:
        self.digest.update(piece)
        self.size += len(piece)

    def _store(self, head: bytes) -> None:
        rest: bytes | None = head
        while rest:
            rest = self._store_segment(rest)

    def _store_segment(self, first: bytes) -> bytes | None:
        """Store one segment that begins with `first`; return what did not fit, or the next piece."""
        offset = sum(segment.length for segment in self.segments)
        parts, length = [first], len(first)
        while length < self._limit:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._count(piece)
            parts.append(piece)
            length += len(piece)
        over = max(0, length - self._limit)
        left = parts[-1][len(parts[-1]) - over :] if over else None
        if over:
            parts[-1] = parts[-1][:-over]
        length -= over
        stored = files.write(self._alias, self._payload, offset, 0, iter(parts), length)
        self.segments.append(Segment(storage=self._alias, name=stored, offset=offset, length=length))
        return left if left is not None else next(self._counted(), None)

    def _counted(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self._count(piece)
            yield piece

    def discard(self) -> None:
        """Delete what was stored."""
        _delete_all(self._payload, self.segments)


def _delete_all(payload: UUID, segments: list[Segment]) -> None:
    if not sql.connection().errors_occurred:  # else it is lost, perhaps at COMMIT: then their rows may be there
        for segment in segments:
            files.delete(segment.storage, segment.name)
        for alias in {segment.storage for segment in segments}:
            files.delete_folder(alias, payload)


def _copy(row: Payload, addresses: list[str], pieces: Iterator[bytes]) -> Payload:
    row.id = uuid4()
    copied = _Copy(row.id, pieces)
    try:
        copied.run()
        if copied.size > WARN_BYTES and sql.connection().in_atomic_block:
            warnings.warn(
                f"deliver() copied {copied.size} bytes inside a transaction, which held its locks meanwhile",
                stacklevel=3,
            )
        row.size, row.inline = copied.size, copied.inline
        _write_rows(row, addresses, copied.segments, copied.digest.hexdigest())
    except BaseException:
        copied.discard()
        raise
    return row


def _write_rows(row: Payload, addresses: list[str], segments: list[Segment], sha256: str) -> None:
    users = Recipients().of(addresses)  # the policy is asked before anything is locked
    with sql.atomic():
        if row.inline is not None:
            inline.deliver(row, sha256, addresses, users)
        else:
            insert_payload(row, addresses, segments)
            outcomes.complete_locked(row, sha256, users)
        if segments:
            sql.on_commit(_Guard(row.id, segments).committed)  # which alone holds the guard
            segments.clear()  # what `_copy` would delete
    sql.on_commit(timeline.write)  # of the site's own transaction too: it may be rolled back


class _Guard:
    """Deletes the files of a transaction that is rolled back.

    Django has no rollback hook, but a rollback drops the `on_commit` callbacks, and with them the last reference to this
    object. The sweep finds the files that a crash or a lost connection leaves.
    """

    def __init__(self, payload: UUID, segments: list[Segment]) -> None:
        self._finalizer = weakref.finalize(self, _delete_all, payload, list(segments))
        self._finalizer.atexit = False

    def committed(self) -> None:
        self._finalizer.detach()


# -- in place ------------------------------------------------------------------------------------------------------


def _in_place(payload: Source) -> tuple[str, FieldFile] | None:
    """Return (storage alias, file) of a file that lies in a storage of STORAGES already."""
    if not isinstance(payload, FieldFile) or not payload.name or not getattr(payload, "_committed", False):
        return None
    alias = aliases.alias_of(payload.storage)
    return None if alias is None else (alias, payload)


def _reference(row: Payload, addresses: list[str], alias: str, file: FieldFile) -> Payload:
    """Deliver a file in place: a task seals it, then it is offered."""
    with files.reporting():
        size = file.storage.size(file.name or "")
        try:
            modified = file.storage.get_modified_time(file.name or "")
        except NotImplementedError:
            modified = None
    row.size, row.in_place, row.state = size, True, PayloadState.SEALING
    segment = Segment(
        storage=alias,
        name=file.name or "",
        offset=0,
        length=size,
        owned=False,
        file_size=size,
        file_modified_at=modified,
    )
    with sql.atomic():
        insert_payload(row, addresses, [segment])
        sql.on_commit(lambda: _seal(row.id))
    return row


def _seal(payload: UUID) -> None:
    try:
        dispatch.publish(dispatch.SEAL, {"payload": payload.hex})
    except BufferUnavailable as error:
        logger.warning("seal of %s waits for the sweep: %s", payload, error)


# -- to whom -------------------------------------------------------------------------------------------------------


def _addresses(to: Any) -> list[str]:
    """Return the addresses in `to`, each once. Raises `UsageError` for anything that is no address."""
    found: dict[str, None] = {}
    for address in _each(to):
        found[address] = None
    return list(found)


def _each(to: Any) -> Iterator[str]:
    if to is None:
        return
    if isinstance(to, Group):
        yield to.address
    elif isinstance(to, str):
        canonical = recipients.canonical_addresses(policy.current(), [to])
        if canonical is None:
            raise UsageError("expected an address user:<primary key or name> or group:<name> of somebody who exists")
        yield from canonical
    elif isinstance(to, models.Model):
        yield policy.address_of(to)
    elif isinstance(to, Iterable):
        for one in to:
            yield from _each(one)
    else:
        raise UsageError(f"expected a user, a group or an address, got a {type(to).__name__}")


# -- the verbs of a payload ----------------------------------------------------------------------------------------


def open_payload(payload: Payload) -> io.BufferedReader:
    """Open a complete payload, as `Payload.open` says."""
    if payload.state != PayloadState.COMPLETE:
        raise UsageError(f"payload {payload.pk} is {payload.state}, expected complete")
    return io.BufferedReader(PayloadFile(payload), buffer_size=READ_BYTES)


def attach(payload: Payload, instance: models.Model, field: str) -> None:
    """Make a complete payload the file of `instance.field`, as `Payload.attach` says."""
    attachments.attach(payload, instance, field)


def discard(payload: Payload) -> None:
    """Cancel a payload's transfers and delete its files, as `Payload.discard` says."""
    outcomes.cancel_payload(payload.pk, by="")


def url_of(payload: Payload, expires: datetime.timedelta) -> str:
    """Return the signed path of a download, which anyone can use until `expires` from now.

    Raises `UsageError` for a payload that is not complete, and where the site has no URL for it.
    """
    if payload.state != PayloadState.COMPLETE:
        raise UsageError(f"payload {payload.pk} is {payload.state}, expected complete")
    until = int(time.time() + expires.total_seconds())
    link = signing.dumps([payload.pk.hex, until], salt=LINK_SALT)
    try:
        return reverse("delivery-payload", args=[link])
    except NoReverseMatch:
        raise UsageError('the site\'s URLs lack path("delivery/", include("delivery.urls"))') from None


def payload_of(link: str) -> UUID | None:
    """Return the payload that a link is for, None where it is forged or expired."""
    try:
        key, until = signing.loads(link, salt=LINK_SALT)
        return UUID(key) if time.time() < until else None
    except (signing.BadSignature, ValueError, TypeError):
        return None
