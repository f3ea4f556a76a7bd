"""The database: locked by somebody else."""

from __future__ import annotations

import asyncio
import sqlite3

from faults.cells import cell
from faults.trial import Trial


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


@cell("database: locked 10 s", deadline=120, quick=False)
async def locked(trial: Trial) -> None:
    await _locked(trial, 3 if trial.hurry else 10)


@cell("database: locked 25 s, longer than its timeout", deadline=150, most_recovery=30, orphans=True)
async def locked_long(trial: Trial) -> None:
    await _locked(trial, 25)
