"""Events hold ids without a constraint: deleting what they tell of no longer races with their being written."""

from __future__ import annotations

from typing import Any

from django.db import migrations, models
from django.db.models import Exists, OuterRef


def _ids_of(to: str) -> models.ForeignKey[Any, Any]:
    return models.ForeignKey(
        null=True, on_delete=models.CASCADE, related_name="events", to=to, db_constraint=False
    )


def delete_dangling(apps: Any, schema_editor: Any) -> None:
    """Delete the events of what is gone, which the constraints that come back would refuse."""
    alias = schema_editor.connection.alias
    events = apps.get_model("delivery", "Event").objects.using(alias)
    for name in ("payload", "transfer"):
        there = apps.get_model("delivery", name).objects.using(alias).filter(pk=OuterRef(f"{name}_id"))
        events.exclude(**{f"{name}_id": None}).filter(~Exists(there)).delete()


class Migration(migrations.Migration):
    dependencies = (("delivery", "0002_fewer_indexes"),)
    operations = (
        migrations.AlterField("event", "payload", _ids_of("delivery.payload")),
        migrations.AlterField("event", "transfer", _ids_of("delivery.transfer")),
        migrations.RunPython(migrations.RunPython.noop, delete_dangling),
    )
