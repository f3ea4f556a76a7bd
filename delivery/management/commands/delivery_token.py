"""`manage.py delivery_token`: a login for clients that have no session."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser


class Command(BaseCommand):
    help = "Print a token for a user, to be sent as `Authorization: Bearer TOKEN`. A change of password voids it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user", help="user name")
        parser.add_argument("--expires", type=float, metavar="SECONDS", help="lifetime (default: without end)")

    def handle(self, *, user: str, expires: float | None, **options: Any) -> None:
        from delivery import make_token

        if expires is not None and expires <= 0:
            raise CommandError(f"--expires wants a number of seconds above 0, not {expires:g}")
        model = get_user_model()
        try:
            account = model._default_manager.get_by_natural_key(user)
        except model.DoesNotExist:
            raise CommandError(f"there is no user {user!r}") from None
        if not account.is_active:
            raise CommandError(f"the user {user!r} is not active, so that no token would be accepted")
        self.stdout.write(make_token(account, expires=expires))
