"""Workers killed at a step of what they do: each step of storing, staging and sealing has its turn."""

from __future__ import annotations

from pathlib import Path

from faults.cells import cell
from faults.steps import CHILD, MAIN, SEAL, STAGE, STORE, Plan, Step
from faults.trial import KIB, MIB, Trial
from rig.waiting import until

VARIABLES = {"CELERY_APP": "faults.doomed"}
REACHED_SECONDS = 60.0
MOST_RECOVERY = 12.0  # 10 s, and a second or two until another process is there; no client has to come back


async def _killed(trial: Trial, steps: tuple[Step, ...], victim: str) -> None:
    """Kill at the step whose turn it is. A trial that does not get there fails."""
    step = trial.turn(steps)
    number = 1 + trial.random.randrange(step.times)
    trial.note(f"{step}, time {number}")
    plan = Plan(trial.stack.var)
    plan.make(step, victim, number)
    trial.afterwards(plan.forget)
    mains = {name: trial.stack.pid(name) for name in trial.stack.workers()}
    await trial.begin(before=40 * MIB, edge=trial.random.choice((64 * KIB + 1, 256 * KIB, 8 * MIB)))
    try:
        struck = await until(plan.struck, what=f"worker at {step}", seconds=REACHED_SECONDS)
    except TimeoutError:
        trial.problem(f"{step} was reached {number - plan.left()} times, not {number}")
        return
    trial.broken(at=struck.at)
    trial.healed(at=struck.at)  # the other worker is there
    await until(lambda: not _lives(struck.pid), what=f"end of the {victim} {struck.pid}", seconds=10)
    if victim == MAIN:
        name = next(name for name, pid in mains.items() if pid == struck.pid)
        await trial.stack.until_replaced(name, struck.pid)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _add_cell(name: str, steps: tuple[Step, ...], victim: str, pool: str) -> None:
    @cell(name, orphans=True, most_recovery=MOST_RECOVERY, variables=VARIABLES, pool=pool)
    async def killed(trial: Trial) -> None:
        await _killed(trial, steps, victim)


for _victim, _who, _pool in (
    (MAIN, "all of it", "threads"),
    (CHILD, "a pool child", "prefork"),
    (MAIN, "the main process", "prefork"),
):
    for _work, _steps in (("store", STORE), ("stage", STAGE), ("seal", SEAL)):
        _add_cell(f"worker: {_who} SIGKILLed at each step of {_work}", _steps, _victim, _pool)
