"""`manage.py delivery_beat`: the site's own Celery beat, which starts the sweeper. One for each site."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from delivery.errors import UsageError
from delivery.launch import celery


class Command(BaseCommand):
    help = "Run the site's Celery beat. Exactly one for each site; without it, run delivery_sweep from cron."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--app", default=celery.default_app(), help="the site's Celery app (default: %(default)s)")
        parser.add_argument(
            "--scheduler",
            # Keeps nothing on disk: intervals of half a minute need no memory, and a killed beat leaves no broken file.
            default="celery.beat:Scheduler",
            help="where the schedule is kept (default: in memory)",
        )
        parser.add_argument("--loglevel", default="INFO")

    def handle(self, *, app: str, scheduler: str, loglevel: str, **options: Any) -> None:
        try:
            celery.site_app(app)
        except UsageError as error:
            raise CommandError(str(error)) from None
        celery.replace_process(app, "beat", f"--scheduler={scheduler}", f"--loglevel={loglevel}", "--pidfile=")
