from django.db import migrations, models

from tests.site_sockets.shelf import models as shelf


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            name="Scan",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("title", models.CharField(blank=True, max_length=50)),
                ("beside", models.FileField(blank=True, storage=shelf.payload_storage, upload_to="")),
                ("elsewhere", models.FileField(blank=True, upload_to="scans")),
                ("broken", models.FileField(blank=True, upload_to=shelf.stubborn)),
            ],
        ),
    ]
