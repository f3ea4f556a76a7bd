"""The database that our tables are in: a site's router may have put them into another one than the default.

Every transaction of ours, and what is to happen once it has committed, names it. All our tables are in one database,
with the table of users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections, models, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from delivery.models import Payload


def alias() -> str:
    """Return the name of our database in DATABASES."""
    return router.db_for_write(Payload)


def connection() -> BaseDatabaseWrapper:
    """Return this thread's connection to our database."""
    return connections[alias()]


def atomic() -> transaction.Atomic:
    """Return a transaction in our database, as a context manager."""
    return transaction.atomic(using=alias())


def on_commit(function: Callable[[], Any]) -> None:
    """Call `function` once the transaction in our database has committed; at once where there is none."""
    transaction.on_commit(function, using=alias())


@contextmanager
def atomic_with(model: type[models.Model]) -> Iterator[None]:
    """Begin a transaction in our database and in the one of a model of the site's, which commits after ours."""
    with transaction.atomic(using=router.db_for_write(model)), atomic():
        yield
