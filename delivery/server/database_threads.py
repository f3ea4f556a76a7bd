"""The threads in which one web process talks to the database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from django.db import connections

from delivery.transfers import sql

P = ParamSpec("P")
T = TypeVar("T")


class DatabaseThreads:
    """Any number of threads that read, and one that writes. All methods belong to one event loop."""

    def __init__(self, count: int) -> None:
        self._any = ThreadPoolExecutor(count, thread_name_prefix="delivery-db")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="delivery-write")

    async def db(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function`, which talks to the database, in one of our threads.

        Not asgiref's thread: there, one consumer's slow query holds up all the others (channels#2132). Cancelling the
        caller leaves the function running to its end.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._any, lambda: with_connections(function, *args, **kwargs))

    async def write(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what `db` does for batches that write, one after the other and always in the same thread.

        SQLite would let a second one wait in naps, PostgreSQL gains little from two. And SQLite's connections each
        have pages of their own in memory, which are worth nothing once another connection has written.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._writer, lambda: with_connections(function, *args, **kwargs))

    async def change(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what `db` does for a transaction of one connection that writes: with the batches, where one may write at a time."""
        run = self.db if sql.many_writers() else self.write
        return await run(function, *args, **kwargs)

    def stop(self) -> None:
        """Take nothing more; what runs goes on to its end."""
        for threads in (self._any, self._writer):
            threads.shutdown(wait=False)


def with_connections(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function and keep its thread's connections for the next, unless one broke."""
    for connection in connections.all(initialized_only=True):
        # As at a request's start: with CONN_HEALTH_CHECKS, one that broke while nobody used it is replaced unnoticed.
        connection.health_check_done = False  # type: ignore[attr-defined] # which the stubs leave out
    try:
        return function(*args, **kwargs)
    finally:
        for connection in connections.all(initialized_only=True):
            if connection.connection is not None and (connection.errors_occurred or not connection.get_autocommit()):
                connection.close()
