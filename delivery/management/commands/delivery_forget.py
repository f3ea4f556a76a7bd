"""`manage.py delivery_forget USER`: delete what a user has sent and what waits for them."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser

from delivery import policy
from delivery.transfers import cleanup, timeline


class Command(BaseCommand):
    help = (
        "End every transfer of a user, and delete what they sent to others and what waits for them: files and rows. "
        "What is kept for the site itself or attached to a model stays. The account stays as well."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user", help="primary key or user name")

    def handle(self, *, user: str, **options: Any) -> None:
        found = policy.user_named(user, get_user_model()._default_manager.all())  # inactive ones, too
        if found is None:
            raise CommandError(f"no user {user!r}: expected a primary key or a user name")
        forgotten = cleanup.forget_user(found.pk, everything=True)
        timeline.write()
        self.stdout.write(f"{forgotten.ended} payloads ended, {forgotten.deleted} deleted")
