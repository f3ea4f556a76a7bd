"""What the stack holds when nothing moves: memory of the web process, of the workers and of Redis."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from rig.processes import Failed
from rig.stack import Stack

MIB = 1024 * 1024
#: The web process keeps blocks for all its recipients (CACHE_SIZE, 64 MiB), and glibc some of what was freed.
WEB_BYTES = 420 * MIB
#: Whoever runs tasks stores or stages in pieces of 256 KiB; 65 to 80 MiB were measured, of children and of threads.
WORKER_BYTES = 160 * MIB
#: Without chunks and blocks: what leases that lost left behind stays until its TTL, 10 minutes. 2 MiB were measured.
REDIS_BYTES = 32 * MIB
WAIT_SECONDS = 10.0
DATA_PATTERNS = ("delivery:1:c:*", "delivery:1:g:*")  # chunks, groups of blocks


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
    except (Failed, OSError) as error:
        return str(error)
    with stack.redis() as client:
        used = client.info("memory")["used_memory"] - _data_bytes(client)
    if web > WEB_BYTES:
        return f"the web process holds {web / MIB:.0f} MiB"
    if worker > WORKER_BYTES:
        return f"a process of a worker holds {worker / MIB:.0f} MiB"
    return f"Redis holds {used / MIB:.0f} MiB beside chunks and blocks" if used > REDIS_BYTES else ""


def _data_bytes(client: Any) -> int:
    """Return what the values of chunks and blocks hold."""
    pipe = client.pipeline(transaction=False)
    for pattern in DATA_PATTERNS:
        for key in client.scan_iter(pattern, count=1000):
            pipe.memory_usage(key)
    return sum(filter(None, pipe.execute()))


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0
