"""Fewer entries for each row: no index that another one begins with, and none of what is over."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import migrations, models

import delivery.models


def _within(to: Any, name: str = "+", **options: Any) -> models.ForeignKey[Any, Any]:
    """Return a foreign key that needs no index of its own: a constraint's begins with its column."""
    return models.ForeignKey(to=to, on_delete=models.CASCADE, related_name=name, db_index=False, **options)


def _id() -> models.UUIDField[Any, Any]:
    return models.UUIDField(default=delivery.models.new_id, editable=False, primary_key=True, serialize=False)


class Migration(migrations.Migration):
    dependencies = (("delivery", "0001_initial"), migrations.swappable_dependency(settings.AUTH_USER_MODEL))
    operations = (
        migrations.RemoveIndex("transfer", "delivery_transfer_expiry"),
        migrations.RemoveIndex("transfer", "delivery_transfer_pending"),
        migrations.AlterField("address", "payload", _within("delivery.payload", "addresses")),
        migrations.AlterField("clientposition", "transfer", _within("delivery.transfer", "clients")),
        migrations.AlterField("segment", "payload", _within("delivery.payload", "segments")),
        migrations.AlterField("transfer", "user", _within(settings.AUTH_USER_MODEL, verbose_name="user")),
        migrations.AddIndex(
            "transfer",
            models.Index(condition=models.Q(state="live"), fields=["expires_at"], name="delivery_transfer_due"),
        ),
        migrations.AddIndex(
            "transfer",
            models.Index(
                condition=models.Q(direction="delivery", state="live"),
                fields=["user", "created_at"],
                name="delivery_transfer_waiting",
            ),
        ),
        # A default of Python's alone: SQLite need not copy the tables for it.
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.AlterField("payload", "id", _id()),
                migrations.AlterField("transfer", "id", _id()),
            ]
        ),
    )
