"""What the stack's site says: who may log in, which worker serves, what Storage holds.

The one module of the demo with Django in it. It reads the stack's own database and Storage as code of the site would,
through the public names of `delivery`. All functions block; call them in a thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from demo.source import Copy, copy_of
from rig.environment import own_environment

P = ParamSpec("P")
T = TypeVar("T")


def open_site(var: Path) -> None:
    """Make this process one of the site whose state is in `var`. Once, before any other function here."""
    import django

    environment = own_environment(DELIVERY_VAR=str(var), DJANGO_SETTINGS_MODULE="project.settings", LOG_LEVEL="WARNING")
    os.environ.clear()
    os.environ.update(environment)
    django.setup()


def _with_connections_closed(ask: Callable[P, T]) -> Callable[P, T]:
    """Threads come and go; what they opened must not stay."""

    @wraps(ask)
    def asked(*arguments: P.args, **options: P.kwargs) -> T:
        from django.db import connections

        try:
            return ask(*arguments, **options)
        finally:
            connections.close_all()

    return asked


@_with_connections_closed
def token(user: str) -> str:
    """Return a login of the demo user."""
    from django.contrib.auth import get_user_model

    from delivery import make_token

    return make_token(get_user_model()._default_manager.get_by_natural_key(user))


@_with_connections_closed
def stored(payload: str) -> Copy:
    """Read a payload back from Storage."""
    from delivery.models import Payload

    with Payload.objects.get(pk=payload).open() as file:
        return copy_of(file)


@dataclass(frozen=True)
class Upload:
    """The live upload: how many bytes of it are stored, and the worker that stored the last of them, if any."""

    position: int
    worker: str


@_with_connections_closed
def upload() -> Upload | None:
    """Return the live upload; None where there is none, before the sender began or after all is stored."""
    from delivery.models import Direction, Transfer, TransferState

    row = Transfer.objects.filter(direction=Direction.UPLOAD, state=TransferState.LIVE).first()
    return Upload(row.position, row.worker.partition("@")[0]) if row else None
