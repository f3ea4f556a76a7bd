"""Workers: told to go, killed whole or in part, frozen beyond their lease, none at all."""

from __future__ import annotations

import asyncio
import signal

from faults.cells import cell
from faults.trial import Trial
from rig.processes import send


async def _main_gone(trial: Trial, number: signal.Signals) -> None:
    await trial.begin()
    await trial.moment()
    name = trial.random.choice(trial.stack.workers())
    pid = trial.stack.pid(name)
    trial.broken()
    send(pid, number)
    trial.healed()  # the other worker is there
    await trial.stack.until_replaced(name, pid)


@cell("worker: SIGTERM")
async def terminated(trial: Trial) -> None:
    await _main_gone(trial, signal.SIGTERM)


@cell("worker: SIGKILL of the main process", orphans=True)
async def killed(trial: Trial) -> None:
    await _main_gone(trial, signal.SIGKILL)


@cell("worker: SIGKILL of a pool child", orphans=True, quick=True, pool="prefork")
async def child_killed(trial: Trial) -> None:
    await trial.begin()
    await trial.moment()
    trial.broken()
    for name in trial.stack.workers():
        if children := trial.stack.children(name):
            send(trial.random.choice(children), signal.SIGKILL)
    trial.healed()


@cell("worker: every pool child killed, again and again", orphans=True, pool="prefork")
async def children_killed(trial: Trial) -> None:
    await trial.begin()
    await trial.moment("upload", "before")
    trial.broken()
    for _ in range(6):
        for name in trial.stack.workers():
            for child in trial.stack.children(name):
                send(child, signal.SIGKILL)
        await asyncio.sleep(0.3 * trial.random.random())
    trial.healed()


@cell("worker: SIGSTOP beyond its lease, then SIGCONT", orphans=True)
async def frozen(trial: Trial) -> None:
    """One worker freezes with tasks in its hands; the other finishes them; then it wakes and writes late."""
    await trial.begin()
    await trial.moment()
    name = trial.random.choice(trial.stack.workers())
    main = trial.stack.pid(name)
    pids = [*trial.stack.children(name), main]
    trial.broken()
    trial.healed()
    for pid in pids:
        send(pid, signal.SIGSTOP)
    await asyncio.sleep(3 if trial.hurry else 14)
    for pid in pids:
        send(pid, signal.SIGCONT)


@cell("worker: none for a minute", orphans=True, deadline=150)
async def none(trial: Trial) -> None:
    """All are frozen: nobody stores, and whoever waits must not fill the queues meanwhile."""
    await trial.begin()
    await trial.moment()
    pids = [pid for name in trial.stack.workers() for pid in (*trial.stack.children(name), trial.stack.pid(name))]
    trial.broken()
    for pid in pids:
        send(pid, signal.SIGSTOP)
    await asyncio.sleep(5 if trial.hurry else 60)
    with trial.stack.redis() as client:
        client.select(1)
        queued = client.llen("delivery") + client.llen("delivery-seal")
    for pid in pids:
        send(pid, signal.SIGCONT)
    trial.healed()
    trial.check(queued < 100, f"{queued} tasks had queued up")
