"""The web process: told to go, killed, frozen."""

from __future__ import annotations

import asyncio
import signal

from faults.cells import cell
from faults.stack import send
from faults.trial import Trial


async def _gone(trial: Trial, number: signal.Signals) -> None:
    await trial.begin()
    await trial.moment()
    pid = trial.stack.pid("web")
    trial.broken()
    send(pid, number)
    await trial.stack.replaced("web", pid)
    await trial.stack.answers()
    trial.healed()


@cell("web: SIGTERM")
async def terminated(trial: Trial) -> None:
    await _gone(trial, signal.SIGTERM)
    await asyncio.sleep(0.5)
    for party in trial.parties:
        seen = set(party.watch.closes)
        trial.check(seen <= {1001}, f"{party.name} saw {sorted(seen)} instead of 1001")


@cell("web: SIGKILL", orphans=True, quick=True)
async def killed(trial: Trial) -> None:
    await _gone(trial, signal.SIGKILL)


@cell("web: SIGSTOP 30 s")
async def frozen(trial: Trial) -> None:
    await trial.begin()
    await trial.moment()
    pid = trial.stack.pid("web")
    trial.broken()
    send(pid, signal.SIGSTOP)
    await asyncio.sleep(3 if trial.hurry else 30)
    send(pid, signal.SIGCONT)
    trial.healed()
