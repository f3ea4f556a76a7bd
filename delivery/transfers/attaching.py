"""Attaching: a payload becomes the file of a model's field, composed by a task, or without a copy where it can."""

from __future__ import annotations

import datetime
import logging

from django.apps import apps
from django.core.exceptions import FieldDoesNotExist
from django.db import models, transaction
from django.utils import timezone

from delivery import dispatch
from delivery.errors import BufferUnavailable, StorageUnavailable, UsageError
from delivery.models import Attachment, Payload, PayloadState, Segment
from delivery.storage import aliases, files, payloads
from delivery.storage.files import PIECE_BYTES, StreamFile
from delivery.transfers import events

logger = logging.getLogger(__name__)

RETRY_SECONDS = 10.0
DEFAULT_NAME = "payload"


def attach(payload: Payload, instance: models.Model, field: str) -> None:
    """Attach at once where nothing is to be copied, else have a task do it after the transaction has committed.

    Raises `UsageError`.
    """
    column = _field_of(type(instance), field)
    if payload.state != PayloadState.COMPLETE:
        raise UsageError(f"payload {payload.pk} is {payload.state}, expected complete")
    if instance.pk is None:
        raise UsageError("save the instance before a payload is attached to it")
    with transaction.atomic():
        Payload.objects.filter(pk=payload.pk).update(keep=True, expires_at=None)
        payload.keep, payload.expires_at = True, None
        segment = _single_file(payload, column)
        if segment is not None:
            _hand_over(payload, instance, column, segment)
            return
        row = Attachment.objects.create(
            payload=payload,
            model=instance._meta.label,
            object_pk=str(instance.pk),
            field=field,
            due_at=timezone.now() + datetime.timedelta(seconds=RETRY_SECONDS),
        )
        transaction.on_commit(lambda: _publish(row.pk))


def _field_of(model: type[models.Model], name: str) -> models.FileField:
    try:
        column = model._meta.get_field(name)
    except FieldDoesNotExist:
        raise UsageError(f"{model._meta.label} has no field {name!r}") from None
    if not isinstance(column, models.FileField):
        raise UsageError(f"{model._meta.label}.{name} is a {type(column).__name__}, expected a FileField")
    return column


def _single_file(payload: Payload, column: models.FileField) -> Segment | None:
    """Return the segment of a payload that is one whole file of ours in the field's storage, None where it is not."""
    alias = aliases.alias_of(column.storage)
    segments = list(payload.segments.all()[:2])
    if alias is None or len(segments) != 1 or payload.inline is not None:
        return None
    segment = segments[0]
    whole = segment.owned and segment.file_offset == 0 and segment.length == payload.size
    return segment if whole and segment.storage == alias else None


def _hand_over(payload: Payload, instance: models.Model, column: models.FileField, segment: Segment) -> None:
    """Let the site have a file of ours as it is."""
    _own_no_more(segment, column)
    segment.save()
    Payload.objects.filter(pk=payload.pk).update(in_place=True)
    _save_field(instance, column, segment.name)
    events.note("attached", payload=payload.pk, copied=False)


def _own_no_more(segment: Segment, column: models.FileField) -> None:
    segment.owned = False
    segment.file_size = segment.length
    try:
        segment.file_modified_at = column.storage.get_modified_time(segment.name)
    except NotImplementedError:
        segment.file_modified_at = None


def _save_field(instance: models.Model, column: models.FileField, name: str) -> None:
    setattr(instance, column.name, name)
    instance.save(update_fields=[column.name])


def _publish(pk: int) -> None:
    try:
        dispatch.publish(dispatch.ATTACH, {"attachment": pk})
    except BufferUnavailable as error:
        logger.warning("attachment %d waits for the sweep: %s", pk, error)


def compose(pk: int) -> None:
    """Do one attachment: the task's work. Idempotent; what fails is tried again by the sweep."""
    row = Attachment.objects.select_related("payload").filter(pk=pk).first()
    if row is None:
        return
    model = apps.get_model(row.model)
    instance = model._default_manager.filter(pk=row.object_pk).first()
    if instance is None or row.payload.state != PayloadState.COMPLETE:
        row.delete()  # the object is gone: the payload stays, kept for the site
        return
    try:
        _compose(row, instance, _field_of(model, row.field))
    except StorageUnavailable as error:
        logger.error("attachment %d: %s", pk, error)
        wait = datetime.timedelta(seconds=RETRY_SECONDS * 2.0 ** min(row.attempts, 8))
        Attachment.objects.filter(pk=pk).update(
            attempts=row.attempts + 1, error=type(error).__name__, due_at=timezone.now() + wait
        )


def _compose(row: Attachment, instance: models.Model, column: models.FileField) -> None:
    payload = row.payload
    size = payload.size or 0
    wanted = column.generate_filename(instance, payload.name or DEFAULT_NAME)
    source = payloads.pieces(payload, 0, size, memoryview(bytearray(PIECE_BYTES)))
    with files.reporting():
        stored = column.storage.save(wanted, StreamFile(map(bytes, source), size), max_length=column.max_length)
    kept = False
    try:
        kept = _point(row, instance, column, stored)
    finally:
        if not kept:
            with files.reporting():
                column.storage.delete(stored)


def _point(row: Attachment, instance: models.Model, column: models.FileField, stored: str) -> bool:
    """Point the field and the payload's rows at the composed file; return False where another task was faster."""
    alias = aliases.alias_of(column.storage)
    with transaction.atomic():
        if not Attachment.objects.select_for_update().filter(pk=row.pk).exists():
            return False
        payload = Payload.objects.select_for_update().get(pk=row.payload_id)
        _save_field(instance, column, stored)
        if alias is not None:
            _replace_segments(payload, column, alias, stored)
        row.delete()
    events.note("attached", payload=payload.pk, copied=True)
    return True


def _replace_segments(payload: Payload, column: models.FileField, alias: str, stored: str) -> None:
    """Have the payload's rows name the site's file instead of ours. A storage outside STORAGES cannot be named: ours stay."""
    old = list(payload.segments.all())
    payload.segments.all().delete()
    segment = Segment(payload=payload, storage=alias, name=stored, offset=0, length=payload.size or 0)
    _own_no_more(segment, column)
    segment.save()
    Payload.objects.filter(pk=payload.pk).update(in_place=True, inline=None)
    transaction.on_commit(lambda: _delete(payload, old))


def _delete(payload: Payload, old: list[Segment]) -> None:
    payloads.delete_files(old)
    for alias in {segment.storage for segment in old if segment.owned}:
        files.delete_folder(alias, payload.pk)


def compose_due(limit: int = 50) -> None:
    """Do what was to be done by now: the sweep's part."""
    due = Attachment.objects.filter(due_at__lte=timezone.now()).order_by("due_at").values_list("pk", flat=True)
    for pk in list(due[:limit]):
        compose(pk)
