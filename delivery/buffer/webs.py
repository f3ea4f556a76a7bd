"""Which web processes live: each renews its place every few seconds, and tells the others that it has come."""

from __future__ import annotations

import json

from delivery.buffer import keys
from delivery.buffer.clients import aclient, reporting

LEASE_SECONDS = 10.0
TOPIC = "webs"


async def arenew(web: str) -> frozenset[str]:
    """Say that `web` lives; return the ids of all that live, its own among them. Raises `BufferUnavailable`."""
    with reporting():
        seconds, micros = await aclient().time()
        pipe = aclient().pipeline(transaction=False)
        pipe.zadd(keys.webs(), {web: seconds + micros / 1e6})
        pipe.zremrangebyscore(keys.webs(), 0, seconds - LEASE_SECONDS)
        pipe.expire(keys.webs(), int(3 * LEASE_SECONDS))
        pipe.zrangebyscore(keys.webs(), 0, "+inf")
        *_, found = await pipe.execute()
    return frozenset(member.decode() for member in found)


async def atell(web: str) -> None:
    """Tell every other web process that `web` has come."""
    with reporting():
        await aclient().publish(keys.channel(TOPIC), json.dumps({"web": web}))


async def aleave(web: str) -> None:
    """Say that `web` ends."""
    with reporting():
        await aclient().zrem(keys.webs(), web)
