"""What goes: the sweep, forgetting a user, deleting rows while others write rows that refer to them.

The sweep ends what has expired, finds what was orphaned and pushes what stands still. Forgetting ends what a user sends,
removes what nobody has received and, with `everything`, all they ever sent.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.contrib.auth import get_user_model
from django.db import models
from django.db.models import Q, QuerySet
from django.db.models.signals import pre_delete
from django.utils import timezone

from delivery import conf, dispatch
from delivery.buffer import leases
from delivery.errors import BufferUnavailable, StorageUnavailable
from delivery.models import (
    Direction,
    Event,
    HandedOver,
    Payload,
    PayloadState,
    Segment,
    SweepMark,
    Transfer,
    TransferState,
    Usage,
)
from delivery.storage import files
from delivery.transfers import attachments, missing_files, outbox, outcomes, quotas, sql, timeline
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
    return sum(outcomes.expire_payload(pk, by="") for pk in list(due.values_list("pk", flat=True)[:BATCH]))


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
    return sum(outcomes.expire_payload(pk, by="") for pk in found)


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
        ended = Payload.objects.filter(pk__in=batch, state__in=outcomes.OVER, in_place=False)
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


# -- forgetting a user -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Forgotten:
    """How many payloads were ended, and how many rows deleted."""

    ended: int
    deleted: int


def forget_user(user: Any, *, everything: bool) -> Forgotten:
    """End what `user` (a primary key) sends and what only they were to receive; files go after the commit.

    `everything`: delete the rows of all that they sent to others as well, delivered or not, and of their deliveries.
    What is kept for the site itself, or attached to a model, stays, without an owner once the user is gone.
    """
    with sql.atomic():
        cancelled = {*_undelivered(user), *_only_for(user)}
        theirs = _sent_by(user).values_list("pk", flat=True) if everything else ()
        held = sql.lock_payloads({*cancelled, *theirs})
        ended = sum(outcomes.cancel_payload(pk, by=f"user:{user}") for pk in held if pk in cancelled)
        deleted = _delete_rows(user) if everything else 0
    return Forgotten(ended, deleted)


def _undelivered(user: Any) -> list[UUID]:
    """Return the payloads of a user that are on their way in, or that somebody is still to receive."""
    mine = Transfer.objects.filter(payload__owner=user, payload__keep=False, state=TransferState.LIVE)
    unfinished = Transfer.objects.filter(user=user, direction=Direction.UPLOAD, state=TransferState.LIVE)
    return list({*mine.values_list("payload_id", flat=True), *unfinished.values_list("payload_id", flat=True)})


def _only_for(user: Any) -> list[UUID]:
    """Return the payloads that wait for nobody but this user."""
    waiting = Transfer.objects.filter(direction=Direction.DELIVERY, state=TransferState.LIVE)
    mine = waiting.filter(user=user, payload__keep=False)
    others = waiting.exclude(user=user).filter(payload__in=mine.values("payload"))
    return list(mine.exclude(payload__in=others.values("payload")).values_list("payload_id", flat=True))


def _sent_by(user: Any) -> QuerySet[Payload]:
    """Return what a user has sent to others."""
    return Payload.objects.filter(owner=user, keep=False)


def _delete_rows(user: Any) -> int:
    theirs = _sent_by(user)
    for pk in list(theirs.values_list("pk", flat=True)):
        outcomes.expire_payload(pk, by=f"user:{user}")
    count = theirs.count()
    theirs.delete()
    Transfer.objects.filter(user=user, direction=Direction.DELIVERY).delete()
    Usage.objects.filter(user=user).delete()
    return count


# -- deleting rows -----------------------------------------------------------------------------------------------------
#
# Django collects what hangs on a row before it deletes anything. A row that comes in between is not collected, and its
# foreign key then fails the deletion at COMMIT. So a payload, transfer or user that is deleted is locked first, against
# new references too, and what came meanwhile is deleted with it, in the thread and transaction of the deletion.


def connect_deletions() -> None:
    """Hear of deletions; called once by the app's configuration."""
    pre_delete.connect(_before_user, sender=get_user_model(), dispatch_uid="delivery.deletion.user")
    pre_delete.connect(_before_payload, sender=Payload, dispatch_uid="delivery.deletion.payload")
    pre_delete.connect(_before_transfer, sender=Transfer, dispatch_uid="delivery.deletion.transfer")


def _before_user(instance: Any, **_ignored: Any) -> None:
    """End what is the user's, then delete the transfers that refer to them by now.

    The user is locked last: who inserts a reference to them holds other locks already when it is checked at COMMIT.
    """
    forget_user(instance.pk, everything=False)
    if sql.many_writers():  # a row to lock, which offers change before they refer to the user
        Usage.objects.get_or_create(user=instance, defaults={"counted_at": timezone.now()})
    sql.lock_in_order(Usage.objects.filter(pk=instance.pk))
    sql.lock_for_deletion(get_user_model()._base_manager.filter(pk=instance.pk))
    Transfer.objects.filter(user=instance.pk).delete()


def _before_payload(instance: Payload, origin: Any = None, **_ignored: Any) -> None:
    if _begins_with(origin, Payload):
        sql.lock_for_deletion(Payload.objects.filter(pk=instance.pk))
        Transfer.objects.filter(payload=instance.pk).delete()


def _before_transfer(instance: Transfer, origin: Any = None, **_ignored: Any) -> None:
    if _begins_with(origin, Transfer):
        sql.lock_in_order(Payload.objects.filter(pk=instance.payload_id))
        sql.lock_for_deletion(Transfer.objects.filter(pk=instance.pk))


def _begins_with(origin: Any, model: type[models.Model]) -> bool:
    """Return whether a deletion began with this model: else its locks come with those of the row that it began with."""
    return (origin.model if isinstance(origin, models.QuerySet) else type(origin)) is model
