"""The database: locked by somebody else; its connections lost at their commits."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import AsyncIterator

from faults.cells import Ground, cell
from faults.postgres import Commits, running
from faults.trial import Trial
from rig import postgres
from rig.stack import Stack
from rig.waiting import until

LOST_SECONDS = 15.0
LOST_OF_EACH = 2  # commits of the web process, and of workers
LOST_SHARE = 0.4
LOST_AT_LATEST = 3  # the first of them


async def _locked(trial: Trial, seconds: float) -> None:
    await trial.begin()
    await trial.moment()
    connection = sqlite3.connect(trial.stack.var / "db.sqlite3", timeout=5, isolation_level=None)
    try:
        trial.broken()
        connection.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(seconds)
        connection.execute("ROLLBACK")
        trial.healed()
    finally:
        connection.close()


@cell("database: locked 10 s", deadline=120)
async def locked(trial: Trial) -> None:
    await _locked(trial, 3 if trial.hurry else 10)


@cell("database: locked 25 s, longer than its timeout", deadline=150, most_recovery=30, orphans=True)
async def locked_long(trial: Trial) -> None:
    await _locked(trial, 25)


_commits: Commits | None = None


@contextlib.asynccontextmanager
async def on_postgres(stack: Stack) -> AsyncIterator[Ground]:
    """A PostgreSQL server of our own: the stack reaches it through a proxy, those who check do not."""
    global _commits
    async with running() as port, Commits(port, stack.owner_of) as _commits:
        yield Ground({"DATABASE_URL": postgres.url_of(_commits.port)}, postgres.url_of(port))


async def _lost(trial: Trial, *, early: bool) -> None:
    """Some commits of the web process and of workers lose their connection, from the first one or from a moment on."""
    if _commits is None:
        raise RuntimeError("this cell stands on PostgreSQL")
    commits, chance = _commits, random.Random(trial.random.random())

    def strikes(owner: str) -> bool:
        cut = commits.cut[owner]
        late = cut == 0 and commits.seen[owner] >= LOST_AT_LATEST
        return owner != "other" and cut < LOST_OF_EACH and (late or chance.random() < LOST_SHARE)

    at_once = trial.turn((True, False))
    if not at_once:
        await trial.begin()
        await trial.moment("upload")  # whose end is commits of both
    trial.broken()
    commits.break_some(strikes, early=early)
    try:
        if at_once:
            await trial.begin()
        with contextlib.suppress(TimeoutError):
            await until(
                lambda: (
                    min(commits.cut["web"], commits.cut["worker"]) == LOST_OF_EACH
                    or all(move.ended is not None for move in trial.moves)
                ),
                what="commits",
                seconds=LOST_SECONDS,
            )
    finally:
        commits.break_none()
    trial.healed()
    trial.note(", ".join(f"{commits.cut[one]} of {commits.seen[one]} commits of {one}" for one in commits.seen))
    trial.check(commits.cut.total() > 0, "no commit was cut")


@cell(
    "database: connection lost before COMMIT",
    orphans=True,
    deadline=120,
    most_recovery=30,
    missing=postgres.missing,
    ground=on_postgres,
)
async def lost_before(trial: Trial) -> None:
    await _lost(trial, early=True)


@cell(
    "database: connection lost after COMMIT, before the answer",
    orphans=True,
    deadline=120,
    most_recovery=30,
    missing=postgres.missing,
    ground=on_postgres,
)
async def lost_after(trial: Trial) -> None:
    await _lost(trial, early=False)
