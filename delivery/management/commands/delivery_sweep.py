"""`manage.py delivery_sweep`: what beat's task does, for a site that runs cron instead."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from delivery.transfers import cleanup


class Command(BaseCommand):
    help = (
        "Expire what is due, push what stands still, delete orphaned files. The same as the task delivery.sweep: run it "
        "from cron every minute where no Celery beat runs."
    )

    def handle(self, **options: Any) -> None:
        done = cleanup.sweep()
        self.stdout.write(", ".join(f"{kind}: {count}" for kind, count in done.items()))
