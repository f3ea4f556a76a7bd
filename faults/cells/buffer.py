"""Redis: killed, emptied, paused, full, evicting."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter

from faults.cells import cell
from faults.measures import DATA_PATTERNS
from faults.trial import Trial
from rig.processes import send


@cell("redis: SIGKILL, back empty", orphans=True, quick=True)
async def killed(trial: Trial) -> None:
    await trial.begin()
    await trial.moment()
    pid = trial.stack.pid("redis")
    trial.broken()
    send(pid, signal.SIGKILL)
    await trial.stack.until_replaced("redis", pid)
    trial.healed()


@cell("redis: FLUSHALL", quick=True)
async def flushed(trial: Trial) -> None:
    await trial.begin()
    await trial.moment()
    trial.broken()
    with trial.stack.redis() as client:
        client.flushall()
    trial.healed()


@cell("redis: FLUSHALL ten times")
async def flushed_often(trial: Trial) -> None:
    await trial.begin()
    await trial.moment("upload", "before")
    trial.broken()
    with trial.stack.redis() as client:
        for _ in range(10):
            client.flushall()
            await asyncio.sleep(0.4 * trial.random.random())
    trial.healed()


@cell("redis: CLIENT PAUSE 5 s")
async def paused(trial: Trial) -> None:
    await trial.begin()
    await trial.moment()
    trial.broken()
    with trial.stack.redis() as client:
        client.execute_command("CLIENT", "PAUSE", "5000", "ALL")
    await asyncio.sleep(5)
    trial.healed()


@cell("redis: out of memory for 4 s")
async def full(trial: Trial) -> None:
    await trial.begin()
    await trial.moment()
    with trial.stack.redis() as client:
        before = client.config_get("maxmemory", "maxmemory-policy")
        used = client.info("memory")["used_memory"]
        trial.broken()
        try:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", used)
            await asyncio.sleep(4)
        finally:
            for name, value in before.items():
                client.config_set(name, value)
    trial.healed()


@cell("redis: evicting by itself for 4 s", deadline=45)  # less than the 60 s after which a stalled transfer starts anew
async def evicting(trial: Trial) -> None:
    """It may keep half of what it holds, and drops what has a TTL, as the embedded one does when it is full."""
    await trial.begin()
    await trial.moment("upload", "before")
    with trial.stack.redis() as client:
        before = client.config_get("maxmemory", "maxmemory-policy")
        evicted = client.info("stats")["evicted_keys"]
        trial.broken()
        try:
            client.config_set("maxmemory-policy", "volatile-lru")
            client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
            await asyncio.sleep(4)
        finally:
            for name, value in before.items():
                client.config_set(name, value)
        evicted = client.info("stats")["evicted_keys"] - evicted
    trial.healed()
    trial.note(f"{evicted} keys evicted")
    trial.check(evicted > 0, "no key was evicted")


@cell("redis: chunks and blocks evicted", quick=True)
async def evicted(trial: Trial) -> None:
    await trial.begin()
    await trial.moment("upload", "before", "big")
    trial.broken()
    gone: Counter[str] = Counter()
    for _ in range(20):
        with trial.stack.redis() as client:
            for pattern in DATA_PATTERNS:
                for key in client.scan_iter(pattern, count=1000):
                    if trial.random.random() < 0.2:
                        gone[pattern] += client.delete(key)
        await asyncio.sleep(0.03)
    trial.note(f"{dict(gone)} keys deleted")
    trial.check(gone.total() > 0, "no key was there")
    trial.healed()
