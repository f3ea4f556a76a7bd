"""What the stack holds when nothing moves: memory of the web process, of the workers and of Redis."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from faults.stack import FaultsError, Stack

MIB = 1024 * 1024
#: The web process keeps blocks for all its recipients (CACHE_SIZE, 64 MiB), and glibc some of what was freed.
WEB_BYTES = 420 * MIB
#: A child stores or stages one segment or range at a time, in pieces of 256 KiB; 65 to 78 MiB were measured.
WORKER_BYTES = 160 * MIB
#: With nothing on its way: what leases that lost left behind, until its TTL. 2 MiB were measured, 11 after SIGKILL.
REDIS_BYTES = 64 * MIB
WAIT_SECONDS = 40.0  # longer than that TTL


async def back_to_baseline(stack: Stack) -> str:
    """Return what is too large although nothing moves, in words; empty where all is as it should be."""
    deadline = time.monotonic() + WAIT_SECONDS
    while found := _too_large(stack):
        if time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.5)
    return ""


def _too_large(stack: Stack) -> str:
    try:
        web = resident_bytes(stack.pid("web"))
        worker = max(
            resident_bytes(pid) for name in stack.workers() for pid in (stack.pid(name), *stack.children(name))
        )
    except (FaultsError, OSError) as error:
        return str(error)
    with stack.redis() as client:
        used = client.info("memory")["used_memory"]
    if web > WEB_BYTES:
        return f"the web process holds {web / MIB:.0f} MiB"
    if worker > WORKER_BYTES:
        return f"a process of a worker holds {worker / MIB:.0f} MiB"
    return f"Redis holds {used / MIB:.0f} MiB" if used > REDIS_BYTES else ""


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0
