"""Attaching: a payload becomes the file of a model's field, composed by a task, or without a copy where it can."""

from __future__ import annotations

import copy
import datetime
import logging
from dataclasses import dataclass
from typing import Any

from django.apps import apps
from django.core.exceptions import FieldDoesNotExist, SuspiciousFileOperation
from django.core.files.storage import Storage
from django.db import models
from django.utils import timezone

from delivery import conf, dispatch
from delivery.errors import BufferUnavailable, IntegrityError, StorageUnavailable, StoredFileMissing, UsageError
from delivery.models import Attachment, HandedOver, Payload, PayloadState, Segment
from delivery.storage import aliases, files, payloads
from delivery.storage.files import PIECE_BYTES, StreamFile
from delivery.transfers import missing_files, outcomes, sql, timeline

logger = logging.getLogger(__name__)

RETRY_SECONDS = 10.0
DEFAULT_NAME = "payload"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a payload is to go: a field of a model's object."""

    model: type[models.Model]
    pk: str
    column: models.FileField

    @property
    def alias(self) -> str | None:
        return aliases.alias_of(self.column.storage)

    def rows(self) -> models.QuerySet[Attachment]:
        """Return what is still to be attached there."""
        return sql.lock(
            Attachment.objects.filter(model=self.model._meta.label, object_pk=self.pk, field=self.column.name)
        )

    def instance(self) -> models.QuerySet[Any]:
        """Return the object. Who has locked it is the only one to change what is attached to it."""
        return self.model._base_manager.filter(pk=self.pk)


def attach(payload: Payload, instance: models.Model, field: str) -> None:
    """Attach at once where nothing is to be copied, else have a task do it after the transaction has committed.

    What was to be attached there before and is not yet is given up: the last call counts. Raises `UsageError`.
    """
    target = Target(type(instance), str(instance.pk), _field_of(type(instance), field))
    if instance._state.adding:
        raise UsageError("save the instance before a payload is attached to it")
    with sql.atomic_with(target.model):
        locked = sql.lock(Payload.objects.filter(pk=payload.pk)).get()
        sql.lock_in_order(target.instance())
        if locked.state != PayloadState.COMPLETE:
            raise UsageError(f"payload {locked.pk} is {locked.state}, expected complete")
        Payload.objects.filter(pk=payload.pk).update(keep=True, expires_at=None)
        payload.keep, payload.expires_at = True, None
        if _attached(locked, instance, target):
            target.rows().delete()
        elif (segment := _single_file(locked, target)) is not None:
            target.rows().delete()
            _hand_over(locked, instance, target, segment)
        else:
            _order(locked, target)


def _field_of(model: type[models.Model], name: str) -> models.FileField:
    try:
        column = model._meta.get_field(name)
    except FieldDoesNotExist:
        raise UsageError(f"{model._meta.label} has no field {name!r}") from None
    if not isinstance(column, models.FileField):
        raise UsageError(f"{model._meta.label}.{name} is a {type(column).__name__}, expected a FileField")
    return column


# -- without a copy ------------------------------------------------------------------------------------------------


def _attached(payload: Payload, instance: models.Model, target: Target) -> bool:
    """Return whether the field has this very file already."""
    name = getattr(instance, target.column.name).name
    return bool(name) and payload.segments.filter(owned=False, storage=target.alias or "", name=name).exists()


def _single_file(payload: Payload, target: Target) -> Segment | None:
    """Return the segment of a payload that is one whole file of ours in the field's storage, None where it is not."""
    segments = list(payload.segments.all()[:2])
    if len(segments) != 1 or payload.inline is not None:
        return None
    segment = segments[0]
    whole = segment.owned and segment.file_offset == 0 and segment.length == payload.size
    fits = len(segment.name) <= (target.column.max_length or len(segment.name))
    return segment if whole and fits and segment.storage == target.alias else None


def _hand_over(payload: Payload, instance: models.Model, target: Target, segment: Segment) -> None:
    """Let the site have a file of ours as it is."""
    segment.owned, segment.file_size = False, segment.length
    segment.file_modified_at = _modified(target.column.storage, segment.name)
    segment.save(update_fields=["owned", "file_size", "file_modified_at"])
    Payload.objects.filter(pk=payload.pk).update(in_place=True)
    HandedOver.objects.get_or_create(payload=payload.pk)
    _save_field(instance, target, segment.name)
    timeline.note("attached", payload=payload.pk, copied=False)


def _modified(storage: Storage, name: str) -> datetime.datetime | None:
    with files.reporting():
        try:
            return storage.get_modified_time(name)
        except NotImplementedError:
            return None


def _save_field(instance: models.Model, target: Target, name: str) -> None:
    setattr(instance, target.column.name, name)
    instance.save(update_fields=[target.column.name])


# -- composed by a task --------------------------------------------------------------------------------------------


def _order(payload: Payload, target: Target) -> None:
    """Have a task compose it. Asked for twice, it is done once."""
    target.rows().exclude(payload=payload).delete()
    row = target.rows().first() or Attachment.objects.create(
        payload=payload,
        model=target.model._meta.label,
        object_pk=target.pk,
        field=target.column.name,
        due_at=timezone.now() + datetime.timedelta(seconds=RETRY_SECONDS),
    )
    sql.on_commit(lambda: _publish(row.pk))


def _publish(pk: int) -> None:
    try:
        dispatch.publish(dispatch.ATTACH, {"attachment": pk})
    except BufferUnavailable as error:
        logger.warning("attachment %d waits for the sweep: %s", pk, error)


def compose_due(limit: int = 50) -> None:
    """Do what was to be done by now: the sweep's part."""
    due = Attachment.objects.filter(due_at__lte=timezone.now()).order_by("due_at").values_list("pk", flat=True)
    for pk in list(due[:limit]):
        compose(pk)


def compose(pk: int) -> None:
    """Do one attachment: the task's work. Idempotent; what fails is tried again by the sweep, with backoff."""
    row = Attachment.objects.select_related("payload").filter(pk=pk).first()
    if row is None:
        return
    try:
        _compose(row)
    except IntegrityError as error:
        logger.error("attachment %d given up: %s", pk, error)
        row.delete()
        outcomes.fail(row.payload_id, "digest")
    except Exception as error:
        # The site's own code (upload_to, save, storage) raises what it likes: its fault, told and tried again.
        logger.exception("attachment %d failed", pk)
        missing_files.seen_if_missing(row.payload_id, error)
        _postpone(row, error)


def _postpone(row: Attachment, error: Exception) -> None:
    wait = datetime.timedelta(seconds=RETRY_SECONDS * 2.0 ** min(row.attempts, 8))
    Attachment.objects.filter(pk=row.pk).update(
        attempts=row.attempts + 1, error=type(error).__name__[:255], due_at=timezone.now() + wait
    )


def _compose(row: Attachment) -> None:
    model = apps.get_model(row.model)
    target = Target(model, row.object_pk, _field_of(model, row.field))
    instance = model._base_manager.filter(pk=row.object_pk).first()
    if row.payload.state != PayloadState.COMPLETE and missing_files.may_be_revived(row.payload):
        raise StoredFileMissing("a file of the payload is missing")
    if instance is None or row.payload.state != PayloadState.COMPLETE:
        _give_up(row)
        return
    size = row.payload.size or 0
    source = payloads.pieces(row.payload, 0, size, memoryview(bytearray(PIECE_BYTES)))
    wanted = _wanted_name(row.payload, instance, target.column)
    stored = _save(target.column, wanted, StreamFile(map(bytes, source), size))
    _point(row, target, stored)


def _wanted_name(payload: Payload, instance: models.Model, column: models.FileField) -> str:
    """Return where `upload_to` wants it. A stranger chose the payload's name: nothing valid may be left of it."""
    try:
        return str(column.generate_filename(instance, payload.name or DEFAULT_NAME))
    except SuspiciousFileOperation:
        return str(column.generate_filename(instance, DEFAULT_NAME))


def _save(column: models.FileField, wanted: str, content: StreamFile) -> str:
    """Save a file in the field's storage; what did not become whole is deleted. Raises `StorageUnavailable`.

    Under which name a storage saves, it says when all is well alone. A full disk leaves part of a file, so we note
    which names it was given: the last one is what it wrote to.
    """
    storage = copy.copy(column.storage)
    given: list[str] = []

    def note_name(*arguments: Any, **options: Any) -> str:
        given.append(column.storage.get_available_name(*arguments, **options))
        return given[-1]

    storage.get_available_name = note_name  # type: ignore[method-assign]
    try:
        with files.reporting():
            stored = storage.save(wanted, content, max_length=column.max_length)
        given.append(stored)
        if content.taken != content.size:
            raise StorageUnavailable(f"storage took {content.taken} of {content.size} bytes")
        return stored
    except BaseException:
        if given:
            _delete(storage, given[-1])
        raise


def _delete(storage: Storage, name: str) -> None:
    try:
        storage.delete(name)
    except Exception:
        logger.exception("a file stays behind in the site's storage")


def _give_up(row: Attachment) -> None:
    """The object is gone: the payload's time runs as if it had never been attached."""
    payload = row.payload
    lifetime = payload.lifetime or datetime.timedelta(seconds=conf.current().payload_expiry)
    with sql.atomic():
        sql.lock_in_order(Payload.objects.filter(pk=payload.pk))
        row.delete()
        mine = Payload.objects.filter(pk=payload.pk, state=PayloadState.COMPLETE, in_place=False)
        others = Attachment.objects.filter(payload=payload).exists()
        if not others and (payload.lifetime is not None or payload.addresses.exists()):
            mine.update(keep=False, expires_at=timezone.now() + lifetime)


def _point(row: Attachment, target: Target, stored: str) -> None:
    """Point the field and the payload's rows at the composed file; delete it where nobody wants it any more.

    A connection that is lost at COMMIT does not tell whether they point there now: then the file stays.
    """
    settled = False
    try:
        modified = _modified(target.column.storage, stored)
        with sql.atomic_with(target.model):
            payload = sql.lock(Payload.objects.filter(pk=row.payload_id)).get()
            instance = sql.lock(target.instance()).first()
            # Else another task was faster, or a later call gave it up.
            wanted = target.rows().filter(pk=row.pk).exists()
            if not wanted or instance is None or payload.state != PayloadState.COMPLETE:
                return
            _save_field(instance, target, stored)
            _replace_segments(payload, target.alias, stored, modified)
            row.delete()
            settled = True
    finally:
        if not settled:
            _delete(target.column.storage, stored)
    timeline.note("attached", payload=payload.pk, copied=True)


def _replace_segments(payload: Payload, alias: str | None, stored: str, modified: datetime.datetime | None) -> None:
    """Have the payload's rows name the site's file instead of ours. A storage outside STORAGES has no name: ours stay."""
    if alias is None:
        return
    old = list(payload.segments.all())
    payload.segments.all().delete()
    size = payload.size or 0
    Segment.objects.create(
        payload=payload,
        storage=alias,
        name=stored,
        offset=0,
        length=size,
        owned=False,
        file_size=size,
        file_modified_at=modified,
    )
    Payload.objects.filter(pk=payload.pk).update(in_place=True, inline=None)
    sql.on_commit(lambda: _delete_ours(payload, old))


def _delete_ours(payload: Payload, old: list[Segment]) -> None:
    payloads.delete_files(old)
    for alias in {segment.storage for segment in old if segment.owned}:
        files.delete_folder(alias, payload.pk)
