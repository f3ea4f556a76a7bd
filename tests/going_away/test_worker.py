"""A worker goes away: those that it served get 1001 and carry on with another one; nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from celery import current_app
from django.contrib.auth.models import User

from delivery import deliver
from delivery.models import Payload
from tests.conformance.peer import Peer
from tests.going_away.conftest import Connect
from tests.going_away.crowd import DATA, DIGEST, WINDOW_BYTES, Crowd
from tests.going_away.rig import WORKER_GRACE_SECONDS, Process, Rig
from tests.stack import Person, Site

SIZE = 262_144
HOST = socket.gethostname()


def shut_down(rig: Rig, worker: Process, how: str) -> None:
    if how == "signal":
        worker.send(signal.SIGTERM)
    else:
        rig.celery("control", "shutdown")  # nobody answers it


async def begin(peer: Peer, chunks: int) -> tuple[int, str]:
    """Offer `DATA`, and have `chunks` of it stored."""
    handle, transfer = await peer.offer(size=len(DATA))
    await peer.hear("accept", handle=handle)
    await go_on(peer, handle, 0, chunks)
    return handle, transfer


async def go_on(peer: Peer, handle: int, first: int, last: int) -> None:
    for seq in range(first, last):
        await peer.chunk(handle, seq, DATA[seq * SIZE : (seq + 1) * SIZE])
    await peer.hear_ack(handle, last)


@pytest.mark.parametrize("pool", ["threads", "prefork"])
@pytest.mark.parametrize("how", ["signal", "control"])
async def test_the_only_worker_goes_and_another_comes(
    rig: Rig, site: Site, connect: Connect, pool: str, how: str
) -> None:
    web, worker = rig.web(), rig.worker("first", f"--pool={pool}")
    web.wait_ready()
    worker.wait_ready()
    served, idle = await connect(), await connect()
    handle, transfer = await begin(served, 32)
    # Taken in, and not yet stored: the last ack comes before going_away.
    for seq in range(32, 40):
        await served.chunk(handle, seq, DATA[seq * SIZE : (seq + 1) * SIZE])
    await served.settle()
    await asyncio.to_thread(shut_down, rig, worker, how)
    assert await served.closes() == (1001, "going away")
    away = served.heard[-1]
    assert isinstance(away, dict)
    assert (away["type"], away["reason"]) == ("going_away", "worker_draining")
    assert 0 <= away["retry_after"] <= 2
    status, seconds = await worker.ends(within=WORKER_GRACE_SECONDS)
    print(f"{pool}, {how}: exit after {seconds:.2f} s")
    assert status == 0
    await idle.settle()

    again = await connect()
    number, _ = await again.offer(transfer=transfer, size=len(DATA))
    accept = await again.hear("accept", handle=number)
    assert accept["limit"] == accept["seq"]
    assert accept["seq"] >= 32
    other, _ = await again.offer(size=len(DATA))
    refused = await again.hear("reject", handle=other)
    assert (refused["code"], refused["retry_after"]) == ("busy", 2.0)
    assert "'delivery'" in refused["message"]

    assert web.log().count("no live worker takes the tasks of the queue 'delivery'") == 1

    rig.worker("second", f"--pool={pool}")
    ack = await again.hear("ack", handle=number, seconds=20)
    assert ack["limit"] > ack["seq"]
    await again.send_from(DATA, accept | {"limit": ack["limit"]})
    assert (await again.hear("done", handle=number, seconds=30))["sha256"] == DIGEST


async def test_under_load_both_ways(rig: Rig, site: Site, alice: Person, tmp_path: Path) -> None:
    """The only worker goes: everybody comes back with 1001 and nothing else, and all is completed by the next one."""
    web, worker = rig.web(), rig.worker("first")
    web.wait_ready()
    worker.wait_ready()
    crowd = Crowd(rig, site, alice, tmp_path)
    work = await crowd.start(senders=3, receivers=3)
    await crowd.all_past(2 * 2**20)
    worker.send(signal.SIGTERM)
    worker.send(signal.SIGTERM)  # a second one changes nothing
    status, seconds = await worker.ends(within=WORKER_GRACE_SECONDS)
    print(f"worker under load: exit after {seconds:.2f} s")
    rig.worker("second")
    await asyncio.gather(*work)
    crowd.report("worker under load")
    assert status == 0
    assert crowd.closes() == {1001}
    assert {member.sha256 for member in crowd.members} == {DIGEST}
    assert all(member.again_bytes <= WINDOW_BYTES for member in crowd.members)


async def test_only_those_that_it_served_lately_are_closed(rig: Rig, site: Site, connect: Connect) -> None:
    web, first, second = rig.web(), rig.worker("first"), rig.worker("second")
    for part in (web, first, second):
        part.wait_ready()
    await consume(site, first="add", second="cancel")
    once, lately, other = await connect(), await connect(), await connect()
    await begin(once, 32)
    since = time.monotonic()
    await consume(site, first="cancel", second="add")
    handle, _ = await begin(other, 32)
    await consume(site, first="add", second="cancel")
    await asyncio.sleep(max(0.0, since + 5.2 - time.monotonic()))
    await begin(lately, 32)
    first.send(signal.SIGTERM)
    assert await lately.closes() == (1001, "going away")
    await consume(site, second="add")
    await once.settle()
    await go_on(other, handle, 32, 64)
    status, _ = await first.ends(within=WORKER_GRACE_SECONDS)
    assert status == 0


def children(worker: Process) -> list[int]:
    """Return the processes of a worker's pool."""
    return [int(pid) for pid in Path(f"/proc/{worker.popen.pid}/task/{worker.popen.pid}/children").read_text().split()]


@contextlib.contextmanager
def paused(pids: Sequence[int]) -> Iterator[None]:
    """Have processes stand still."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def has_tasks(site: Site, count: int) -> None:
    """Wait until workers have taken so many tasks that are not finished."""

    def taken() -> bool:
        with current_app.connection() as connection:
            return int(connection.default_channel.client.hlen("unacked")) >= count

    await site.until(taken, what="task in hand")


async def test_a_worker_that_has_not_reported_yet_sends_away_with_its_first_report(
    rig: Rig, site: Site, connect: Connect
) -> None:
    """An upload and a delivery, whose tasks the worker has begun as it drains; who comes after that stays."""
    web, worker = rig.web(), rig.worker("first", "--pool=prefork")
    web.wait_ready()
    worker.wait_ready()
    people = [await site.person(), await site.person()]
    user = await site.run(User.objects.get, pk=people[1].pk)
    payload = await site.run(deliver, DATA, user)
    await site.until(lambda: Payload.objects.get(pk=payload.pk).state == "complete", what="sealed payload")
    uploading, idle = await connect(), await connect()
    async with Peer.open(rig.ws_url, token=people[1].token) as receiving:
        with paused(children(worker)):
            handle, _ = await uploading.offer(size=len(DATA))
            await uploading.hear("accept", handle=handle)
            for seq in range(64):
                await uploading.chunk(handle, seq, DATA[seq * SIZE : (seq + 1) * SIZE])
            await has_tasks(site, 1)
            await receiving.hello(receive=True)
            offer = await receiving.hear("offer")
            await receiving.say(
                "accept", transfer=offer["transfer"], handle=offer["handle"], chunk_size=SIZE, seq=0, limit=64
            )
            await has_tasks(site, 2)
            worker.send(signal.SIGTERM)
            worker.says("Warm shutdown")
            again = await connect()
            await asyncio.gather(uploading.settle(), receiving.settle(), idle.settle())
        assert await uploading.closes() == (1001, "going away")
        assert await receiving.closes() == (1001, "going away")
    status, _ = await worker.ends(within=WORKER_GRACE_SECONDS)
    assert status == 0
    await asyncio.gather(again.settle(), idle.settle())


async def consume(site: Site, **what: str) -> None:
    """Have workers take our tasks or leave them to others."""
    for name, verb in what.items():
        change = getattr(current_app.control, f"{verb}_consumer")
        answer = await site.run(change, "delivery", destination=[f"{name}@{HOST}"], reply=True, timeout=10)
        assert "ok" in str(answer), answer


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("seconds", [0.3, 1.0])
async def test_sigterm_while_starting(rig: Rig, pool: str, seconds: float) -> None:
    worker = rig.worker("worker", f"--pool={pool}")
    await asyncio.sleep(seconds)
    worker.send(signal.SIGTERM)
    status, _ = await worker.ends(within=8)
    assert status in (0, -signal.SIGTERM)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL], ids=["stopped", "killed"])
async def test_ends_in_time_with_redis_away(rig: Rig, how: signal.Signals, pool: str) -> None:
    worker = rig.worker("worker", f"--pool={pool}", "--end-after=2")
    worker.wait_ready()
    rig.redis.send(how)
    await asyncio.sleep(0.5)
    worker.send(signal.SIGTERM)
    status, seconds = await worker.ends(within=15)
    print(f"worker, {pool}, Redis {how.name}: exit {status} after {seconds:.2f} s")
