"""All trials of all cells: the stack they run on, what each came to, and the table."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
import sys
import time
import traceback
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from faults import measures, site
from faults.cells import Cell, Ground
from faults.trial import MIB, Outcome, Trial
from rig.stack import Stack

WORKERS = "--workers=2"
COLUMNS = ("cell", "trials", "failures", "recovery median s", "max s", "bytes again, median MiB", "max MiB")


@dataclass
class Row:
    """What the trials of one cell came to."""

    name: str
    outcomes: list[Outcome] = field(default_factory=list)
    growth: str = ""

    @property
    def failures(self) -> int:
        return sum(bool(outcome.problems) for outcome in self.outcomes)

    def cells(self) -> tuple[str, ...]:
        recoveries = [outcome.recovery for outcome in self.outcomes if outcome.recovery is not None]
        again = [outcome.again_bytes / MIB for outcome in self.outcomes]
        return (
            self.name,
            str(len(self.outcomes)),
            str(self.failures),
            f"{statistics.median(recoveries):.2f}" if recoveries else "-",
            f"{max(recoveries):.2f}" if recoveries else "-",
            f"{statistics.median(again):.1f}" if again else "-",
            f"{max(again):.1f}" if again else "-",
        )


class Runner:
    """Runs cells on one stack in `folder`."""

    def __init__(self, folder: Path, *, seed: int, trials: int, hurry: bool = False, quiet: bool = False) -> None:
        self.rows: list[Row] = []
        self.skipped: dict[str, str] = {}  # cells that cannot run here, and why
        self._folder = folder
        self._seed = seed
        self._trials = range(trials)
        self._hurry = hurry
        self._quiet = quiet
        self._stack = Stack(folder / "var", WORKERS)

    def only(self, trial: int) -> None:
        """Run just the trial of this number."""
        self._trials = range(trial, trial + 1)

    async def run(self, cells: list[Cell]) -> None:
        """Run every cell that can run here. The stack is ended whatever happens."""
        cells = [cell for cell in cells if self._can_run(cell)]
        opened = False
        for ground, on_ground in itertools.groupby(sorted(cells, key=_ground_name), key=lambda one: one.ground):
            async with ground(self._stack) if ground is not None else _bare() as beneath:
                try:
                    for cell in sorted(on_ground, key=lambda one: (one.pool, sorted(one.variables.items()))):
                        await self._stack.restart(
                            WORKERS, f"--pool={cell.pool}", **{**beneath.variables, **cell.variables}
                        )
                        if not opened:
                            site.open_site(self._stack.var)
                            opened = True
                        site.use_database(beneath.database_url)
                        await self._run_cell(cell)
                finally:
                    await self._stack.astop()

    def _can_run(self, cell: Cell) -> bool:
        if why := cell.missing():
            self.skipped[cell.name] = why
            self._say(f"skipped {cell.name}: {why}")
        return not why

    async def _run_cell(self, cell: Cell) -> None:
        row = Row(cell.name)
        self.rows.append(row)
        for number in self._trials:
            outcome = await self._run_trial(cell, number)
            row.outcomes.append(outcome)
            self._tell(cell, number, outcome)
        if problem := await measures.back_to_baseline(self._stack):
            row.outcomes[-1].problems.append(problem)
            self._say(f"  FAILED {cell.name}: {problem}")

    async def _run_trial(self, cell: Cell, number: int) -> Outcome:
        folder = self._folder / f"trial-{time.monotonic_ns()}"
        folder.mkdir()
        trial = Trial(
            self._stack,
            folder,
            f"{self._seed}/{cell.name}",
            number,
            hurry=self._hurry,
            deadline=cell.deadline,
            most_recovery=cell.most_recovery,
        )
        trial.may_orphan = cell.orphans
        began = time.monotonic()
        try:
            await cell.body(trial)
            await trial.finish()
        except Exception as error:  # noqa: BLE001 - whatever a trial ends with is its outcome
            trial.problem(f"{error!r}")
            trial.outcome.log += traceback.format_exc().splitlines()
        try:
            if trial.outcome.problems:
                await trial.describe()
            await trial.leave()
        except Exception as error:  # noqa: BLE001
            trial.problem(f"leaving: {error!r}")
            trial.outcome.log += traceback.format_exc().splitlines()
        trial.outcome.seconds = time.monotonic() - began
        await asyncio.to_thread(_remove, folder)
        return trial.outcome

    # -- telling -----------------------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(text, flush=True)

    def _tell(self, cell: Cell, number: int, outcome: Outcome) -> None:
        recovery = "-" if outcome.recovery is None else f"{outcome.recovery:.2f} s"
        verdict = "FAILED" if outcome.problems else "ok"
        self._say(
            f"{verdict:6} {cell.name} #{number}: {outcome.seconds:.1f} s, moved again after {recovery}, "
            f"{outcome.again_bytes / MIB:.1f} MiB again; {'; '.join(outcome.notes)}"
        )
        if not outcome.problems:
            return
        for problem in outcome.problems:
            self._say(f"       {problem}")
        self._say(f"       replay: python -m faults --only {cell.name!r} --seed {self._seed} --trial {number}")
        path = self._folder / f"failed-{cell.name.replace(' ', '-').replace('/', '-').replace(':', '')}-{number}.log"
        path.write_text("\n".join([*outcome.problems, *outcome.notes, *outcome.log, "", self._stack.log()[-60_000:]]))
        self._say(f"       all that was seen: {path}")

    @property
    def failures(self) -> int:
        return sum(row.failures for row in self.rows)

    def table(self) -> str:
        """Return the table as Markdown; its last line counts."""
        lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        lines += ["| " + " | ".join(row.cells()) + " |" for row in self.rows]
        total = sum(len(row.outcomes) for row in self.rows)
        lines += [f"\nskipped: {name}: {why}" for name, why in self.skipped.items()]
        return "\n".join([*lines, "", f"{total} trials, {self.failures} failed"])


def _ground_name(cell: Cell) -> str:
    return "" if cell.ground is None else cell.ground.__name__


@contextlib.asynccontextmanager
async def _bare() -> AsyncIterator[Ground]:
    yield Ground({})


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def say_table(runner: Runner) -> None:
    sys.stdout.write(f"\n{runner.table()}\n")
    sys.stdout.flush()
