"""The cells: each a fault, with what it may do. A body gets a trial and breaks something while others move."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from delivery.launch.celery import POOLS
from faults.trial import Trial
from rig.stack import Stack

MODULES = ("clients", "network", "web", "worker", "steps", "buffer", "storage", "database", "clock", "crowd")
Body = Callable[[Trial], Awaitable[None]]


@dataclass(frozen=True)
class Ground:
    """What a stack stands on beside itself: `variables` for its environment; where its rows are, if not in SQLite."""

    variables: Mapping[str, str]
    database_url: str | None = None


@dataclass(frozen=True)
class Cell:
    """One fault. `orphans`: files without rows may be left to the sweep. Times in seconds.

    `variables` are in the stack's environment, `pool` is its workers'; `quick`: one of those that run with the tests.
    `missing` says why the cell cannot run on this machine; it is skipped then. `ground` is entered before the stack starts.
    """

    name: str
    body: Body
    orphans: bool = False
    deadline: float = 90.0
    most_recovery: float = 20.0  # 10 s, and the longest backoff of the clients
    variables: Mapping[str, str] = field(default_factory=dict)
    pool: str = POOLS[0]
    quick: bool = False
    missing: Callable[[], str] = str
    ground: Callable[[Stack], AbstractAsyncContextManager[Ground]] | None = None


_cells: dict[str, Cell] = {}


def cell(
    name: str,
    *,
    orphans: bool = False,
    deadline: float = 90.0,
    most_recovery: float = 20.0,
    variables: Mapping[str, str] | None = None,
    pool: str = POOLS[0],
    quick: bool = False,
    missing: Callable[[], str] = str,
    ground: Callable[[Stack], AbstractAsyncContextManager[Ground]] | None = None,
) -> Callable[[Body], Body]:
    """Make a function a cell."""

    def add(body: Body) -> Body:
        _cells[name] = Cell(
            name, body, orphans, deadline, most_recovery, variables or {}, pool, quick, missing=missing, ground=ground
        )
        return body

    return add


def all_cells() -> list[Cell]:
    """Return every cell, in the order of the issue."""
    for module in MODULES:
        importlib.import_module(f"faults.cells.{module}")
    return list(_cells.values())
