"""How full Redis is."""

from __future__ import annotations

from delivery.buffer.clients import aclient, reporting


async def ause() -> tuple[int, int]:
    """Return (bytes used, bytes allowed) of Redis; allowed is 0 where it has no `maxmemory`."""
    with reporting():
        found = await aclient().info("memory")
    return int(found["used_memory"]), int(found.get("maxmemory", 0))
