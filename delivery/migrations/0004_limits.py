"""The limits of an upload stand in its payload's row, and what its rows are charged with.

Columns that may be null: processes of the version before write none of them.
"""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = (("delivery", "0003_events_hold_ids"),)
    operations = (
        migrations.AddField("payload", "overhead", models.BigIntegerField(null=True)),
        migrations.AddField("payload", "max_size", models.BigIntegerField(null=True)),
        migrations.AddField("payload", "max_stored", models.BigIntegerField(null=True)),
    )
