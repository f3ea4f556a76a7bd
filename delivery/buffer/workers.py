"""Which workers live: each renews its place every few seconds; SIGKILL lets it lapse. By Redis's own clock."""

from __future__ import annotations

from delivery.buffer import keys
from delivery.buffer.clients import aclient, client, reporting

LEASE_SECONDS = 10.0
RENEW_SECONDS = 3.0
LEFT_SECONDS = 3600


def stay(worker: str) -> None:
    """Say that `worker` does not go, without taking tasks: an earlier one of its name may have said so."""
    with reporting():
        client().unlink(keys.left(worker))


def renew(worker: str) -> None:
    """Say that `worker` lives and takes tasks."""
    with reporting():
        seconds, micros = client().time()
        pipe = client().pipeline(transaction=False)
        pipe.zadd(keys.workers(), {worker: seconds + micros / 1e6})
        pipe.expire(keys.workers(), int(3 * LEASE_SECONDS))
        pipe.unlink(keys.left(worker))
        pipe.execute()


def leave(worker: str) -> None:
    """Say that `worker` takes no more tasks."""
    with reporting():
        pipe = client().pipeline(transaction=False)
        pipe.zrem(keys.workers(), worker)
        pipe.set(keys.left(worker), "1", ex=LEFT_SECONDS)
        pipe.execute()


def left(worker: str) -> bool:
    """Return whether `worker` has said so."""
    with reporting():
        return bool(client().exists(keys.left(worker)))


async def aalive() -> frozenset[str]:
    """Return the ids of the workers that live."""
    with reporting():
        seconds, _ = await aclient().time()
        found = await aclient().zrangebyscore(keys.workers(), seconds - LEASE_SECONDS, "+inf")
    return frozenset(member.decode() for member in found)


def alive() -> frozenset[str]:
    """Do what `aalive` does, in a thread."""
    with reporting():
        seconds, _ = client().time()
        found = client().zrangebyscore(keys.workers(), seconds - LEASE_SECONDS, "+inf")
    return frozenset(member.decode() for member in found)
