"""A database whose answer to COMMIT is lost with the connection."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NoReturn

import pytest
from django.db import connection


@contextlib.contextmanager
def lost_at_commit(monkeypatch: pytest.MonkeyPatch, *, committed: bool) -> Iterator[None]:
    """Lose this thread's connection at each COMMIT, before the database has heard of it or after it is `committed`."""
    commit = connection._commit

    def lose() -> NoReturn:
        with connection.wrap_database_errors:
            raise connection.Database.OperationalError("the connection is lost")

    def answer() -> None:
        if committed:
            commit()
        lose()

    with monkeypatch.context() as patched:
        patched.setattr(connection, "_commit", answer)
        patched.setattr(connection, "_rollback", lose)
        yield
