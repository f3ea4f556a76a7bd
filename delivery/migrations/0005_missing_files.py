"""Payloads of which a stored file is missing, and the permission to revive them."""

from __future__ import annotations

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = (("delivery", "0004_limits"),)
    operations = (
        migrations.AlterModelOptions(
            name="payload",
            options={
                "ordering": ("-created_at",),
                "permissions": (
                    ("cancel_payload", "Can cancel payloads"),
                    ("expire_payload", "Can expire payloads"),
                    ("revive_payload", "Can revive payloads whose files were missing"),
                ),
                "verbose_name": "payload",
                "verbose_name_plural": "payloads",
            },
        ),
        migrations.CreateModel(
            name="MissingFile",
            fields=[
                (
                    "payload",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="missing_file",
                        serialize=False,
                        to="delivery.payload",
                    ),
                ),
                ("since", models.DateTimeField(verbose_name="since")),
                ("tries", models.PositiveIntegerField(default=0, verbose_name="tries")),
                ("tried_at", models.DateTimeField(verbose_name="tried")),
            ],
            options={"indexes": [models.Index(fields=["tried_at"], name="delivery_missing_tried")]},
        ),
    )
