"""A model of a site that keeps files: where payloads are kept, elsewhere, and where it has its own ideas."""

from __future__ import annotations

from django.core.files.storage import Storage, storages
from django.db import models


def payload_storage() -> Storage:
    return storages["delivery"]


def stubborn(instance: models.Model, name: str) -> str:
    raise ValueError("the site's own code fails")


class Scan(models.Model):
    title = models.CharField(max_length=50, blank=True)
    beside = models.FileField(storage=payload_storage, blank=True)  # where delivery keeps payloads
    elsewhere = models.FileField(upload_to="scans", blank=True)
    broken = models.FileField(upload_to=stubborn, blank=True)

    def __str__(self) -> str:
        return self.title
