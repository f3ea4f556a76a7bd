"""Stored files that are gone: the payload fails, but not before it is certain; and it can be revived.

A file that is not there may be back in a minute: its volume was not mounted. So a payload fails only after several
tries, spread over ten minutes, and only while the storage's root answers and most of what was stored about the same
time is there. What is left of it is kept: once its files are back, an operator revives it.

Runs in a thread and talks to the database and to Storage.
"""

from __future__ import annotations

import datetime
import logging
from uuid import UUID

from django.db.models import F
from django.utils import timezone

from delivery import dispatch
from delivery.errors import BufferUnavailable, StorageUnavailable, StoredFileMissing
from delivery.models import MissingFile, Payload, PayloadState, Segment
from delivery.storage import files
from delivery.transfers import outcomes, quotas, sql, timeline

logger = logging.getLogger(__name__)

LEAST_DURATION = datetime.timedelta(minutes=10)
LEAST_TRIES = 5
BETWEEN_TRIES = datetime.timedelta(minutes=1)
MOST_WITNESSES = 8  # on either side
BATCH = 100
WANTED_STATES = (PayloadState.COMPLETE, PayloadState.SEALING)


def seen(payload_id: UUID) -> None:
    """Note that a stored file of a payload was not there when it was wanted; try again where that is due."""
    now = timezone.now()
    with sql.atomic():
        if not sql.lock(Payload.objects.filter(pk=payload_id, state__in=WANTED_STATES)).exists():
            return
        row, created = MissingFile.objects.get_or_create(
            payload_id=payload_id, defaults={"since": now, "tried_at": now}
        )
    if created:
        timeline.note("missing", payload=payload_id)
    elif row.tried_at <= now - BETWEEN_TRIES:
        try_again(row)


def seen_if_missing(payload_id: UUID, error: Exception) -> None:
    """Do what `seen` does where `error` says that a stored file is missing."""
    if isinstance(error, StoredFileMissing):
        seen(payload_id)


def try_due() -> int:
    """Look again for what was missing: the sweep's part. Returns how many payloads failed."""
    due = MissingFile.objects.filter(tried_at__lte=timezone.now() - BETWEEN_TRIES, payload__state__in=WANTED_STATES)
    return sum(try_again(row) for row in list(due.order_by("tried_at")[:BATCH]))


def give_up_expired() -> int:
    """Delete what was kept of payloads whose time is up: the sweep's part. Returns how many."""
    due = MissingFile.objects.filter(payload__state=PayloadState.FAILED, payload__expires_at__lte=timezone.now())
    return sum(outcomes.expire_payload(pk, by="") for pk in list(due.values_list("pk", flat=True)[:BATCH]))


def try_again(row: MissingFile) -> bool:
    """Look once more for a payload's files; return whether it has failed now."""
    now = timezone.now()
    mine = MissingFile.objects.filter(pk=row.pk)
    if not mine.filter(tried_at=row.tried_at).update(tried_at=now):
        return False  # another task tries
    try:
        segment = first_missing(row.payload_id)
        if segment is None:
            mine.delete()
            return False
        certain = _certain(segment)
    except StorageUnavailable:
        certain = False
    if not certain:
        logger.error("a file of payload %s is missing, and most of the others too: is a volume away?", row.payload_id)
        mine.update(since=now, tries=0)
        return False
    if row.tries + 1 < LEAST_TRIES or now - row.since < LEAST_DURATION:
        mine.update(tries=F("tries") + 1)
        return False
    return _fail(row.payload_id)


def _fail(payload_id: UUID) -> bool:
    """Fail a payload whose file is still missing: a volume may have come back while its root was looked at."""
    segment = first_missing(payload_id)
    if segment is None:
        return False
    logger.error("payload %s fails: the file %s of storage %r is gone", payload_id, segment.name, segment.storage)
    return outcomes.fail(payload_id, "digest", keep_files=True)


def may_be_revived(payload: Payload) -> bool:
    """Return whether a payload failed, or is about to, because a stored file is missing; or is being checked again."""
    revived = payload.state == PayloadState.SEALING and payload.completed_at is not None
    return revived or MissingFile.objects.filter(pk=payload.pk).exists()


def first_missing(payload_id: UUID) -> Segment | None:
    """Return the first segment of a payload whose file is not there. Raises `StorageUnavailable`."""
    there: set[tuple[str, str]] = set()
    for segment in Segment.objects.filter(payload=payload_id).order_by("offset"):
        file = (segment.storage, segment.name)
        if file not in there and not files.is_there(*file):
            return segment
        there.add(file)
    return None


def _certain(segment: Segment) -> bool:
    """Return whether a file that is missing is gone, and not its storage, or a volume of it, with many others.

    Raises `StorageUnavailable`.
    """
    witnesses = _witnesses(segment)
    if not witnesses:
        return files.root_answers(segment.storage)
    there = sum(files.is_there(segment.storage, name) for name in witnesses)
    return 2 * there > len(witnesses)


def _witnesses(segment: Segment) -> list[str]:
    """Return the files of other payloads that were stored just before and just after this one, in its storage."""
    others = Segment.objects.filter(storage=segment.storage).exclude(payload=segment.payload_id)
    before = others.filter(pk__lt=segment.pk).order_by("-pk")[:MOST_WITNESSES]
    after = others.filter(pk__gt=segment.pk).order_by("pk")[:MOST_WITNESSES]
    return [one.name for one in (*before, *after)]


def revive(payload_id: UUID, *, by: str) -> bool:
    """Check a payload that failed for a missing file once more; where its digest agrees, it is complete again.

    Its recipients who have not received it are then offered it anew. Returns whether there was anything to do. `by`:
    the address of who asks, for the timeline. Raises `StorageUnavailable` while a file is missing.
    """
    if not MissingFile.objects.filter(pk=payload_id, payload__state=PayloadState.FAILED).exists():
        return False
    if (segment := first_missing(payload_id)) is not None:
        raise StorageUnavailable(f"the file {segment.name} of storage {segment.storage!r} is still missing")
    with sql.atomic():
        payload = sql.lock(Payload.objects.filter(pk=payload_id, state=PayloadState.FAILED)).first()
        if payload is None or not MissingFile.objects.filter(pk=payload_id).delete()[0]:
            return False
        payload.state, payload.failure = PayloadState.SEALING, ""
        payload.expected_sha256 = payload.sha256 or payload.expected_sha256
        payload.save(update_fields=["state", "failure", "expected_sha256"])
        if payload.expected_sha256:
            _remember_times(payload)
        quotas.revived(payload)
        timeline.note("revived", payload=payload_id, by=by)
        sql.on_commit(lambda: _seal(payload_id))
    return True


def _remember_times(payload: Payload) -> None:
    """Take files of the site's as they are now, brought back with other times; the digest says whether it is them."""
    for segment in payload.segments.exclude(file_modified_at=None):
        segment.file_modified_at = files.modified(segment.storage, segment.name)
        segment.save(update_fields=["file_modified_at"])


def _seal(payload_id: UUID) -> None:
    try:
        dispatch.publish(dispatch.SEAL, {"payload": payload_id.hex})
    except BufferUnavailable as error:
        logger.warning("seal of %s waits for the sweep: %s", payload_id, error)
