"""Quotas: reserved at the offer, in the transaction that takes it, and reconciled when the payload ends.

One conditional UPDATE of the user's row, so that parallel offers at the edge cannot pass together.
"""

from __future__ import annotations

import datetime
from typing import Any

from django.db.models import Count, F, Q, Sum
from django.db.models.functions import Coalesce
from django.utils import timezone

from delivery import conf
from delivery.errors import Refused
from delivery.models import Payload, PayloadState, Usage
from delivery.policy import Quota
from delivery.transfers import sql
from delivery.transfers.sql import Statement

COUNT_AGAIN = datetime.timedelta(hours=1)
MOST_BYTES, MOST_LIVE = 2**63 - 1, 2**31 - 1  # that the columns hold
_RESERVE = Statement(
    Usage,
    "UPDATE {table} SET {stored} = {stored} + %s, {live} = {live} + %s"
    " WHERE {user} = %s AND {stored} <= %s AND {live} < %s",
    *("stored", "live", "user", "stored", "live"),
)
_ONE_LESS = Statement(Usage, "UPDATE {table} SET {live} = {live} - 1 WHERE {user} = %s AND {live} > 0", "user")
CHARGED = (PayloadState.STORING, PayloadState.SEALING, PayloadState.COMPLETE)


def reserve(user: Any, quota: Quota, size: int, *, live: bool) -> None:
    """Charge a user with `size` bytes and, if `live`, with one upload. Call it inside the transaction of the offer.

    Raises `Refused` with `quota` where either would be exceeded.
    """
    most = min(quota.live, quota.in_flight // conf.current().window)
    charge = (
        size,
        int(live),
        user.pk,
        min(quota.stored - size, MOST_BYTES),
        min(most, MOST_LIVE) if live else MOST_LIVE,
    )
    if _RESERVE.run(*charge):
        return
    Usage.objects.get_or_create(user=user, defaults={"counted_at": timezone.now()})
    if not _RESERVE.run(*charge):  # again: the user's first offer had no row to change
        raise Refused("quota", f"at most {quota.stored} bytes and {most} uploads at once")


def grow(payload: Payload, max_stored: int, by: int) -> bool:
    """Charge the owner of a payload with `by` bytes more; return whether `max_stored`, of all of theirs, allows it.

    The payload's row is locked, and `payload` as it is there. `by` may be negative: bytes are given back.
    """
    if payload.owner_id is not None:
        usage = Usage.objects.filter(user_id=payload.owner_id)
        fits = usage.filter(stored__lte=max_stored - by) if by > 0 else usage
        if not fits.update(stored=F("stored") + by) and by > 0:
            return False
    payload.reserved += by
    Payload.objects.filter(pk=payload.pk).update(reserved=payload.reserved)
    return True


def completed(payload: Payload) -> None:
    """Note that an upload is complete: its bytes stay charged, and no more than those.

    Of an unknown size, what lay beyond a gap when it resumed was stored, and charged, twice.
    """
    if payload.owner_id is None or payload.inline is not None:
        return
    _ONE_LESS.run(payload.owner_id)
    if (excess := payload.reserved - (payload.size or 0)) > 0:
        Usage.objects.filter(user_id=payload.owner_id).update(stored=F("stored") - excess)
        Payload.objects.filter(pk=payload.pk).update(reserved=F("reserved") - excess)


def revived(payload: Payload) -> None:
    """Charge the owner of a payload that had ended again, whether their quota allows it or not."""
    if payload.owner_id is not None:
        uploading = int(payload.completed_at is None and payload.inline is None)
        usage = Usage.objects.filter(user_id=payload.owner_id)
        usage.update(stored=F("stored") + payload.reserved + (payload.overhead or 0), live=F("live") + uploading)


def ended(payload: Payload, *, live: bool) -> None:
    """Give back what a payload that ended was charged with. `live`: it was still an upload."""
    if payload.owner_id is None:
        return
    usage = Usage.objects.filter(user_id=payload.owner_id)
    usage.update(stored=F("stored") - payload.reserved - (payload.overhead or 0))
    if live:
        _ONE_LESS.run(payload.owner_id)


def count_again(limit: int = 100) -> int:
    """Count anew what has not been counted for an hour: the sweep's part. Returns how many users."""
    due = Usage.objects.filter(counted_at__lt=timezone.now() - COUNT_AGAIN)
    users = list(due.order_by("counted_at").values_list("pk", flat=True)[:limit])
    for user in users:
        _count(user)
    return len(users)


def _count(user: Any) -> None:
    with sql.atomic():
        # Locked against offers: they change this row in the transaction that makes the payload.
        usage = sql.lock(Usage.objects.filter(pk=user)).first()
        if usage is None:
            return
        found = Payload.objects.filter(owner=user, state__in=CHARGED).aggregate(
            stored=Sum(F("reserved") + Coalesce("overhead", 0)),
            live=Count("pk", filter=~Q(state=PayloadState.COMPLETE) & Q(inline=None)),
        )
        usage.stored, usage.live, usage.counted_at = found["stored"] or 0, found["live"], timezone.now()
        usage.save()
