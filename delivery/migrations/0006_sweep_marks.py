"""How far the sweep has come, and the folders whose files became the site's."""

from __future__ import annotations

from typing import Any

from django.db import migrations, models


def note_handed_over(apps: Any, schema_editor: Any) -> None:
    """Note what was attached before, without a copy: a file of the site's in a payload's folder."""
    alias = schema_editor.connection.alias
    segments = apps.get_model("delivery", "Segment").objects.using(alias).filter(owned=False)
    found = segments.order_by().values_list("payload_id", "name").iterator(chunk_size=1000)
    kept = {payload for payload, name in found if name.startswith(f"{payload}/")}
    model = apps.get_model("delivery", "HandedOver")
    model.objects.using(alias).bulk_create((model(payload=payload) for payload in kept), batch_size=500)


class Migration(migrations.Migration):
    dependencies = (("delivery", "0005_missing_files"),)
    operations = (
        migrations.CreateModel(
            name="SweepMark",
            fields=[
                ("name", models.CharField(max_length=32, primary_key=True, serialize=False)),
                ("at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="HandedOver",
            fields=[("payload", models.UUIDField(primary_key=True, serialize=False))],
        ),
        migrations.RunPython(note_handed_over, migrations.RunPython.noop),
    )
