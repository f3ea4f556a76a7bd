"""The live workers and web processes: each renews its entry every few seconds. Times are Redis's own.

The entry of a killed process expires. The list of web processes exists for speed: a web process that knows that it is
alone notifies its own sockets of a new delivery directly, without pub/sub. Without the list, only that is lost.
"""

from __future__ import annotations

import json

from delivery.buffer import keys
from delivery.buffer.pool import aclient, client, reporting

LEASE_SECONDS = 10.0
RENEW_SECONDS = 3.0
LEFT_SECONDS = 3600
WEBS_TOPIC = "webs"


# -- workers ---------------------------------------------------------------------------------------------------------


def unmark_left(worker: str) -> None:
    """Clear the drain mark of `worker`, which an earlier worker of the same name may have left."""
    with reporting():
        client().unlink(keys.left(worker))


def renew_worker(worker: str) -> None:
    """Register `worker` as alive and taking tasks."""
    with reporting():
        seconds, micros = client().time()
        pipe = client().pipeline(transaction=False)
        pipe.zadd(keys.workers(), {worker: seconds + micros / 1e6})
        pipe.expire(keys.workers(), int(3 * LEASE_SECONDS))
        pipe.unlink(keys.left(worker))
        pipe.execute()


def remove_worker(worker: str) -> None:
    """Register that `worker` takes no more tasks."""
    with reporting():
        pipe = client().pipeline(transaction=False)
        pipe.zrem(keys.workers(), worker)
        pipe.set(keys.left(worker), "1", ex=LEFT_SECONDS)
        pipe.execute()


def has_left(worker: str) -> bool:
    """Return whether `worker` has said that it takes no more tasks."""
    with reporting():
        return bool(client().exists(keys.left(worker)))


async def aalive_workers() -> frozenset[str]:
    """Return the ids of the workers that live."""
    with reporting():
        seconds, _ = await aclient().time()
        found = await aclient().zrangebyscore(keys.workers(), seconds - LEASE_SECONDS, "+inf")
    return frozenset(member.decode() for member in found)


def alive_workers() -> frozenset[str]:
    """Do what `aalive_workers` does, in a thread."""
    with reporting():
        seconds, _ = client().time()
        found = client().zrangebyscore(keys.workers(), seconds - LEASE_SECONDS, "+inf")
    return frozenset(member.decode() for member in found)


# -- web processes ---------------------------------------------------------------------------------------------------


async def arenew_web(web: str) -> frozenset[str]:
    """Register `web` as alive; return the ids of all live web processes, itself included. Raises `BufferUnavailable`."""
    with reporting():
        seconds, micros = await aclient().time()
        pipe = aclient().pipeline(transaction=False)
        pipe.zadd(keys.webs(), {web: seconds + micros / 1e6})
        pipe.zremrangebyscore(keys.webs(), 0, seconds - LEASE_SECONDS)
        pipe.expire(keys.webs(), int(3 * LEASE_SECONDS))
        pipe.zrangebyscore(keys.webs(), 0, "+inf")
        *_, found = await pipe.execute()
    return frozenset(member.decode() for member in found)


async def aannounce_web(web: str) -> None:
    """Tell every other web process that `web` has come."""
    with reporting():
        await aclient().publish(keys.channel(WEBS_TOPIC), json.dumps({"web": web}))


async def aremove_web(web: str) -> None:
    """Remove `web`, which ends."""
    with reporting():
        await aclient().zrem(keys.webs(), web)
