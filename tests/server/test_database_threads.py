"""The threads of a web process keep their connections to a database server, and notice where one is lost."""

from __future__ import annotations

import asyncio

import pytest
from django.db import connection, connections

from delivery.server.database_threads import DatabaseThreads

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has no server: DATABASE_URL"),
]


def backend() -> int:
    """Return the process of the server that serves this thread."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def end(pid: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        assert cursor.fetchone() == (True,)


def test_a_connection_that_broke_while_nobody_used_it_is_replaced() -> None:
    async def use() -> tuple[int, int, int]:
        threads = DatabaseThreads(1)  # the same thread each time
        kept, again = await threads.db(backend), await threads.db(backend)
        await asyncio.to_thread(_elsewhere, kept)
        new = await threads.db(backend)
        await threads.db(connections.close_all)
        threads.stop()
        return kept, again, new

    kept, again, new = asyncio.run(use())
    assert kept == again != new


def _elsewhere(pid: int) -> None:
    try:
        end(pid)
    finally:
        connections.close_all()
