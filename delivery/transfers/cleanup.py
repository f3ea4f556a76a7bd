"""Retention: what has expired goes, what was orphaned is found, what stands still is pushed. The sweep's work."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable
from uuid import UUID

from django.db.models import Q
from django.utils import timezone

from delivery import conf, dispatch
from delivery.buffer import leases
from delivery.errors import BufferUnavailable, StorageUnavailable
from delivery.models import Event, HandedOver, Payload, PayloadState, Segment, SweepMark, Transfer, TransferState
from delivery.storage import files
from delivery.transfers import attachments, ending, missing_files, outbox, quotas, timeline
from delivery.transfers.digests import DEAD_AFTER_SECONDS

logger = logging.getLogger(__name__)

BATCH = 500
ORPHANS_AGAIN = datetime.timedelta(days=1)
ORPHAN_AGES = (datetime.timedelta(), ORPHANS_AGAIN)
UNSEEN_SECONDS = 60.0


def sweep() -> dict[str, int]:
    """Do once what is due: expire, seal again, announce again, delete orphans. Returns what was done, by kind.

    What a step raises is raised once all were tried.
    """
    done: dict[str, int] = {}
    failures = [error for kind, step in _STEPS if (error := _try(kind, step, done)) is not None]
    timeline.write()
    if failures:
        raise failures[0]
    return done


def _try(kind: str, step: Callable[[], int | None], done: dict[str, int]) -> Exception | None:
    """Do one step of the sweep; return what it raised: it keeps none of the others from their turn."""
    try:
        count = step()
    except Exception as error:
        logger.exception("a step of the sweep failed")
        return error
    if kind and count is not None:
        done[kind] = done.get(kind, 0) + count
    return None


def _expire_payloads() -> int:
    due = Payload.objects.filter(state=PayloadState.COMPLETE, expires_at__lte=timezone.now()).order_by("expires_at")
    return sum(ending.expire_payload(pk, by="") for pk in list(due.values_list("pk", flat=True)[:BATCH]))


def _expire_uploads() -> int:
    """Expire unfinished uploads 72 h after their last progress, and payloads of the site that never got whole."""
    now = timezone.now()
    due = Transfer.objects.filter(
        direction="upload", state=TransferState.LIVE, expires_at__lte=now, payload__state=PayloadState.STORING
    ).order_by("expires_at")
    # Their users were deleted in the moment in which they began.
    left = Payload.objects.filter(state=PayloadState.STORING, transfers=None)
    lost = left.filter(created_at__lte=now - datetime.timedelta(seconds=conf.current().upload_expiry))
    found = [*due.values_list("payload_id", flat=True)[:BATCH], *lost.values_list("pk", flat=True)[:BATCH]]
    return sum(ending.expire_payload(pk, by="") for pk in found)


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
    """Delete files without rows, of payloads whose upload has ended, and again a day later.

    Goes through all of them in the order of their ends, from where the last sweep came to, however long ago that was.
    """
    return sum(_delete_orphans_since(f"orphans {age.days}", timezone.now() - age) for age in ORPHAN_AGES)


def _delete_orphans_since(mark: str, now: datetime.datetime) -> int:
    until = now - datetime.timedelta(seconds=UNSEEN_SECONDS)
    since = SweepMark.objects.filter(name=mark).values_list("at", flat=True).first()
    ended = Transfer.objects.filter(direction="upload", ended_at__lte=until)
    ended = ended.filter(payload__inline=None, payload__in_place=False)
    if since is not None:
        ended = ended.filter(ended_at__gt=since)
    found = list(ended.order_by("ended_at").values_list("payload", "ended_at")[:BATCH])
    count, reached = 0, since
    for payload, ended_at in found:
        try:
            count += delete_orphans(payload)
        except StorageUnavailable as error:
            logger.warning("orphans of %s and of what ended later wait: %s", payload, error)
            break
        reached = ended_at
    if reached is not None and reached != since:
        SweepMark.objects.update_or_create(name=mark, defaults={"at": reached})
    return count


def delete_orphans(payload: UUID) -> int:
    """Delete the files in a payload's folder that no row names. Only while no upload of it lives.

    Raises `StorageUnavailable`.
    """
    if Transfer.objects.filter(payload=payload, direction="upload", state=TransferState.LIVE).exists():
        return 0
    alias = conf.current().storage
    found = files.names(alias, payload)
    if not found:
        return 0
    named = set(Segment.objects.filter(payload=payload).values_list("name", flat=True))
    return sum(files.delete(alias, name) for name in found if name not in named)


def delete_lost() -> int:
    """Delete the folders of payloads without a row: `deliver()` was killed between copying and writing its rows.

    Empty ones too, which a task leaves that comes when its payload has just been deleted; none with a file that became
    the site's. Only what is a day old: rows come last, and a copy that is under way has none yet. Also what is left of
    payloads that have ended. Lists all of Storage, so that the sweep does it once a day. Raises `StorageUnavailable`.
    """
    alias = conf.current().storage
    young = timezone.now() - ORPHANS_AGAIN
    count = 0
    found = files.folders(alias)
    for start in range(0, len(found), BATCH):
        batch = found[start : start + BATCH]
        ended = Payload.objects.filter(pk__in=batch, state__in=ending.OVER, in_place=False)
        count += sum(_delete_rest(alias, pk) for pk in ended.values_list("pk", flat=True))
        known = set(Payload.objects.filter(pk__in=batch).values_list("pk", flat=True))
        known |= set(HandedOver.objects.filter(payload__in=batch).values_list("payload", flat=True))
        count += sum(_delete_folder(alias, pk, young) for pk in batch if pk not in known)
    return count


def _delete_rest(alias: str, payload: UUID) -> int:
    """Delete what is left of a payload that has ended: Storage was away then, or whoever deleted it was killed."""
    count = delete_orphans(payload)
    files.delete_folder(alias, payload)
    return count


def _delete_folder(alias: str, payload: UUID, young: datetime.datetime) -> int:
    names = files.names(alias, payload)
    if not all(files.is_ours(name) for name in names):
        return 0  # the site's own, in a storage that we share
    times = [files.modified(alias, name) for name in names or [files.folder(payload)]]
    if any(time is None or time > young for time in times):
        return 0
    for name in names:
        files.delete(alias, name)
    files.delete_folder(alias, payload)
    return len(names)


def _delete_lost_daily() -> int:
    try:
        return delete_lost() if leases.claim("lost", seconds=ORPHANS_AGAIN.total_seconds()) else 0
    except (BufferUnavailable, StorageUnavailable) as error:
        logger.warning("lost files wait: %s", error)
        return 0


def _forget_events() -> int:
    oldest = timezone.now() - datetime.timedelta(seconds=conf.current().event_expiry)
    return Event.objects.filter(at__lt=oldest).delete()[0]


_STEPS: tuple[tuple[str, Callable[[], int | None]], ...] = (
    ("expired", _expire_payloads),
    ("expired", _expire_uploads),
    ("expired", missing_files.give_up_expired),
    ("missing", missing_files.try_due),
    ("sealing", _seal_again),
    ("orphans", _delete_orphans),
    ("orphans", _delete_lost_daily),
    ("events", _forget_events),
    ("", outbox.announce_due),
    ("", attachments.compose_due),
    ("", quotas.count_again),
)
