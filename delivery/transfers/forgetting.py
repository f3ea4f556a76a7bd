"""Forgetting a user: what they send ends, what nobody has received goes, and with `everything` all they ever sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db.models import QuerySet

from delivery.models import Direction, Payload, Transfer, TransferState, Usage
from delivery.transfers import ending, sql


@dataclass(frozen=True, slots=True)
class Forgotten:
    """How many payloads were ended, and how many rows deleted."""

    ended: int
    deleted: int


def forget(user: Any, *, everything: bool) -> Forgotten:
    """End what `user` (a primary key) sends and what only they were to receive; files go after the commit.

    `everything`: delete the rows of all that they sent to others as well, delivered or not, and of their deliveries.
    What is kept for the site itself, or attached to a model, stays, without an owner once the user is gone.
    """
    with sql.atomic():
        cancelled = {*_undelivered(user), *_only_for(user)}
        theirs = _sent_by(user).values_list("pk", flat=True) if everything else ()
        held = sql.lock_payloads({*cancelled, *theirs})
        ended = sum(ending.cancel_payload(pk, by=f"user:{user}") for pk in held if pk in cancelled)
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
        ending.expire_payload(pk, by=f"user:{user}")
    count = theirs.count()
    theirs.delete()
    Transfer.objects.filter(user=user, direction=Direction.DELIVERY).delete()
    Usage.objects.filter(user=user).delete()
    return count
