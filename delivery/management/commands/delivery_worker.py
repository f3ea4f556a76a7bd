"""`manage.py delivery_worker`: a Celery worker of the site's own app that consumes our queues."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from delivery import conf, worker
from delivery.errors import UsageError
from delivery.launch import celery


class Command(BaseCommand):
    help = "Run a Celery worker on the queues of delivery and the app's default one. SIGTERM: finish what is in hand."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--app", default=celery.default_app(), help="the site's Celery app (default: %(default)s)")
        parser.add_argument("--concurrency", type=int, default=2, help="tasks at a time (default: 2)")
        parser.add_argument(
            "--pool",
            choices=celery.POOLS,
            default=celery.POOLS[0],
            help="threads cost least; prefork is for tasks of the site's own that compute in Python (default: %(default)s)",
        )
        parser.add_argument("--queues", help="comma-separated (default: delivery's, and the app's default queue)")
        parser.add_argument(
            "--name", default="worker", help="what the worker is called before its host (default: worker)"
        )
        parser.add_argument(
            "--end-after",
            type=float,
            default=20.0,
            metavar="SECONDS",
            help="end by force so long after SIGTERM, if Redis does not answer then (default: 20)",
        )
        parser.add_argument("--loglevel", default="INFO")

    def handle(
        self,
        *,
        app: str,
        concurrency: int,
        pool: str,
        queues: str | None,
        name: str,
        end_after: float,
        loglevel: str,
        **options: Any,
    ) -> None:
        try:
            consumed = queues or ",".join(celery.queues(app, conf.current()))
        except UsageError as error:
            raise CommandError(str(error)) from None
        celery.replace_process(
            app,
            "worker",
            f"--queues={consumed}",
            f"--concurrency={concurrency}",
            f"--pool={pool}",
            f"--hostname={name}@%h",
            f"--loglevel={loglevel}",
            "--prefetch-multiplier=1",  # a task moves up to 16 MiB: what waits here another worker could do
            "--without-gossip",
            "--without-mingle",  # a second at every start, for nothing that we use
            **{worker.END_AFTER: str(end_after)},
        )
