"""Deleting rows while others write rows that refer to them.

Django collects what hangs on a row before it deletes anything. A row that comes in between is not collected, and its
foreign key then fails the deletion at COMMIT. So a payload, transfer or user that is deleted is locked first, against
new references too, and what came meanwhile is deleted with it. Runs in the thread and transaction of the deletion.
"""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.db import models
from django.db.models.signals import pre_delete
from django.utils import timezone

from delivery.models import Payload, Transfer, Usage
from delivery.transfers import forgetting, sql


def connect() -> None:
    """Hear of deletions; called once by the app's configuration."""
    pre_delete.connect(_before_user, sender=get_user_model(), dispatch_uid="delivery.deletion.user")
    pre_delete.connect(_before_payload, sender=Payload, dispatch_uid="delivery.deletion.payload")
    pre_delete.connect(_before_transfer, sender=Transfer, dispatch_uid="delivery.deletion.transfer")


def _before_user(instance: Any, **_ignored: Any) -> None:
    """End what is the user's, then delete the transfers that refer to them by now.

    The user is locked last: who inserts a reference to them holds other locks already when it is checked at COMMIT.
    """
    forgetting.forget(instance.pk, everything=False)
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
