"""Retention: what has expired goes, what was orphaned is found, what stands still is pushed. The sweep's work."""

from __future__ import annotations

import datetime
import logging
from uuid import UUID

from django.db.models import Q
from django.utils import timezone

from delivery import conf, dispatch
from delivery.buffer import markers
from delivery.errors import BufferUnavailable, StorageUnavailable
from delivery.models import Event, Payload, PayloadState, Segment, Transfer, TransferState
from delivery.storage import files
from delivery.transfers import attaching, ending, events, missing_files, notices, quotas
from delivery.transfers.sealing import DEAD_AFTER_SECONDS

logger = logging.getLogger(__name__)

BATCH = 500
ORPHANS_AGAIN = datetime.timedelta(days=1)
UNSEEN_SECONDS = 60.0


def sweep() -> dict[str, int]:
    """Do once what is due: expire, seal again, announce again, delete orphans. Returns what was done, by kind."""
    done = {
        "expired": _expire_payloads() + _expire_uploads() + missing_files.give_up_expired(),
        "missing": missing_files.try_due(),
        "sealing": _seal_again(),
        "orphans": _delete_orphans() + _delete_lost_daily(),
        "events": _forget_events(),
    }
    notices.announce_due()
    attaching.compose_due()
    quotas.count_again()
    events.write()
    return done


def _expire_payloads() -> int:
    due = Payload.objects.filter(state=PayloadState.COMPLETE, expires_at__lte=timezone.now()).order_by("expires_at")
    return sum(ending.expire_payload(pk, by="") for pk in list(due.values_list("pk", flat=True)[:BATCH]))


def _expire_uploads() -> int:
    """Expire unfinished uploads 72 h after their last progress, and payloads of the site that never got whole."""
    now = timezone.now()
    due = Transfer.objects.filter(
        direction="upload", state=TransferState.LIVE, expires_at__lte=now, payload__state=PayloadState.STORING
    ).order_by("expires_at")
    return sum(ending.expire_payload(pk, by="") for pk in list(due.values_list("payload_id", flat=True)[:BATCH]))


def _seal_again() -> int:
    """Ask again for the digests that nobody computes."""
    dead = timezone.now() - datetime.timedelta(seconds=DEAD_AFTER_SECONDS)
    idle = Payload.objects.filter(state=PayloadState.SEALING).filter(Q(sealing_at=None) | Q(sealing_at__lt=dead))
    found = list(idle.values_list("pk", flat=True)[:BATCH])
    for pk in found:
        _publish_seal(pk)
    return len(found)


def _publish_seal(pk: UUID) -> None:
    try:
        dispatch.publish(dispatch.SEAL, {"payload": pk.hex})
    except BufferUnavailable as error:
        logger.warning("seal of %s waits for the next sweep: %s", pk, error)


def _delete_orphans() -> int:
    """Delete files without rows, of payloads that ended lately, and again a day later."""
    now = timezone.now()
    windows = Q()
    for age in (datetime.timedelta(), ORPHANS_AGAIN):
        since = now - age - datetime.timedelta(minutes=10)
        until = now - age - datetime.timedelta(seconds=UNSEEN_SECONDS)
        windows |= Q(transfers__ended_at__gt=since, transfers__ended_at__lte=until)
    ended = Payload.objects.filter(windows, transfers__direction="upload", inline=None, in_place=False).distinct()
    return sum(delete_orphans(pk) for pk in list(ended.values_list("pk", flat=True)[:BATCH]))


def delete_orphans(payload: UUID) -> int:
    """Delete the files in a payload's folder that no row names. Only while no upload of it lives."""
    if Transfer.objects.filter(payload=payload, direction="upload", state=TransferState.LIVE).exists():
        return 0
    alias = conf.current().storage
    try:
        found = files.names(alias, payload)
        if not found:
            return 0
        named = set(Segment.objects.filter(payload=payload).values_list("name", flat=True))
        orphans = [name for name in found if name not in named]
        for name in orphans:
            files.delete(alias, name)
    except StorageUnavailable as error:
        logger.warning("orphans of %s wait: %s", payload, error)
        return 0
    return len(orphans)


def delete_lost() -> int:
    """Delete the folders of payloads without a row: `deliver()` was killed between copying and writing its rows.

    Empty ones too, which a task leaves that comes when its payload has just been deleted.
    Only what is a day old: rows come last, and a copy that is under way has none yet. Lists all of Storage, so that the
    sweep does it once a day.
    """
    alias = conf.current().storage
    young = timezone.now() - ORPHANS_AGAIN
    count = 0
    found = files.folders(alias)
    for start in range(0, len(found), BATCH):
        batch = found[start : start + BATCH]
        known = set(Payload.objects.filter(pk__in=batch).values_list("pk", flat=True))
        count += sum(_delete_folder(alias, pk, young) for pk in batch if pk not in known)
    return count


def _delete_folder(alias: str, payload: UUID, young: datetime.datetime) -> int:
    names = files.names(alias, payload)
    times = [files.modified(alias, name) for name in names or [files.folder(payload)]]
    if any(time is None or time > young for time in times):
        return 0
    for name in names:
        files.delete(alias, name)
    files.delete_folder(alias, payload)
    return len(names)


def _delete_lost_daily() -> int:
    try:
        return delete_lost() if markers.claim("lost", seconds=ORPHANS_AGAIN.total_seconds()) else 0
    except (BufferUnavailable, StorageUnavailable) as error:
        logger.warning("lost files wait: %s", error)
        return 0


def _forget_events() -> int:
    oldest = timezone.now() - datetime.timedelta(seconds=conf.current().event_expiry)
    return Event.objects.filter(at__lt=oldest).delete()[0]
