"""A web process goes away (PROTOCOL section 6): every socket whose peer reads gets 1001, and it ends in time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from websockets.asyncio.client import connect as connect_socket
from websockets.exceptions import ConnectionClosed

from tests.conformance.peer import Peer
from tests.going_away.conftest import Connect
from tests.going_away.crowd import DATA, DIGEST, WINDOW_BYTES, Crowd, deliver_to
from tests.going_away.rig import WEB_GRACE_SECONDS, Rig
from tests.stack import Person, Site


async def test_fifty_sockets_are_told_and_spread(rig: Rig, alice: Person, connect: Connect) -> None:
    web = rig.web()
    web.wait_ready()
    peers = await asyncio.gather(*(connect() for _ in range(50)))
    web.send(signal.SIGTERM)
    closes = await asyncio.gather(*(peer.closes() for peer in peers))
    assert set(closes) == {(1001, "going away")}
    told = [await peer.hear("going_away") for peer in peers]
    assert {message["reason"] for message in told} == {"server_draining"}
    waits = [message["retry_after"] for message in told]
    assert all(0 <= wait <= 2 for wait in waits)
    assert max(waits) - min(waits) > 0.5
    status, seconds = await web.ends(within=WEB_GRACE_SECONDS)
    print(f"50 sockets: exit after {seconds:.2f} s")
    assert status == 0


async def test_under_load_both_ways(rig: Rig, site: Site, alice: Person, tmp_path: Path) -> None:
    web, worker = rig.web(), rig.worker()
    web.wait_ready()
    worker.wait_ready()
    crowd = Crowd(rig, site, alice, tmp_path)
    work = await crowd.start(senders=4, receivers=4)
    await crowd.all_past(4 * 2**20)
    web.send(signal.SIGTERM)
    status, seconds = await web.ends(within=WEB_GRACE_SECONDS)
    print(f"under load: exit after {seconds:.2f} s")
    again = rig.web()
    again.wait_ready()
    await asyncio.gather(*work)
    crowd.report("under load")
    assert status == 0
    assert crowd.closes() == {1001}
    assert {member.sha256 for member in crowd.members} == {DIGEST}
    assert all(member.again_bytes <= WINDOW_BYTES for member in crowd.members)


@contextlib.asynccontextmanager
async def downloading(rig: Rig, site: Site, person: Person) -> AsyncIterator[Peer]:
    """A socket with a delivery on its way, whose credit covers all of it."""
    await site.run(deliver_to, person.pk, DATA)
    async with Peer.open(rig.ws_url, token=person.token) as peer:
        await peer.hello(receive=True)
        offer = await peer.hear("offer")
        size = offer["chunk_size"]
        await peer.say(
            "accept",
            transfer=offer["transfer"],
            handle=offer["handle"],
            chunk_size=size,
            seq=0,
            limit=-(-len(DATA) // size),
        )
        yield peer


async def test_a_sender_that_reads_late_still_gets_1001(rig: Rig, connect: Connect) -> None:
    """It goes on sending chunks for a while, and reads the close only a second after it was sent."""
    web, worker = rig.web(), rig.worker()
    web.wait_ready()
    worker.wait_ready()
    peer = await connect()
    handle, _ = await peer.offer(size=len(DATA))
    accept = await peer.hear("accept", handle=handle)
    size, transport = accept["chunk_size"], peer.socket.transport

    async def send() -> None:
        with contextlib.suppress(ConnectionClosed):
            for seq in range(accept["limit"]):
                await peer.chunk(handle, seq, DATA[seq * size : (seq + 1) * size])
                await asyncio.sleep(0.02)

    sending = asyncio.create_task(send())
    await asyncio.sleep(0.3)
    web.send(signal.SIGTERM)
    transport.pause_reading()
    await asyncio.sleep(1.0)
    transport.resume_reading()
    assert await peer.closes() == (1001, "going away")
    await sending
    status, _ = await web.ends(within=WEB_GRACE_SECONDS)
    assert status == 0


async def test_a_peer_that_does_not_read_holds_nobody_up(rig: Rig, site: Site, alice: Person, connect: Connect) -> None:
    web, worker = rig.web(), rig.worker()
    web.wait_ready()
    worker.wait_ready()
    bob = await site.person()
    async with downloading(rig, site, bob) as deaf:
        await deaf.hear_chunk(1)
        deaf.socket.transport.pause_reading()
        others = [await connect() for _ in range(3)]
        await asyncio.sleep(0.3)
        began = time.monotonic()
        web.send(signal.SIGTERM)
        assert {await peer.closes() for peer in others} == {(1001, "going away")}
        told = time.monotonic() - began
        status, seconds = await web.ends(within=WEB_GRACE_SECONDS)
        print(f"a peer that does not read: the others told after {told:.2f} s, exit after {seconds:.2f} s")
        deaf.socket.transport.abort()
    assert status == 0
    assert told < 1.5


async def test_sigterm_twice(rig: Rig, connect: Connect) -> None:
    web = rig.web()
    web.wait_ready()
    peer = await connect()
    web.send(signal.SIGTERM)
    web.send(signal.SIGTERM)
    assert await peer.closes() == (1001, "going away")
    status, _ = await web.ends(within=WEB_GRACE_SECONDS)
    assert status == 0


@pytest.mark.parametrize("seconds", [0.05, 0.4, 0.8])
async def test_sigterm_while_starting(rig: Rig, seconds: float) -> None:
    web = rig.web()
    await asyncio.sleep(seconds)
    web.send(signal.SIGTERM)
    status, _ = await web.ends(within=5)
    assert status in (0, -signal.SIGTERM)  # before its handler is there, the signal itself ends it


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL], ids=["stopped", "killed"])
async def test_ends_in_time_with_redis_away(
    rig: Rig, site: Site, alice: Person, connect: Connect, tmp_path: Path, how: signal.Signals
) -> None:
    web, worker = rig.web(), rig.worker()
    web.wait_ready()
    worker.wait_ready()
    idle = await connect()
    busy = await connect()
    handle, _ = await busy.offer(size=len(DATA))
    accept = await busy.hear("accept", handle=handle)
    rig.redis.send(how)
    for seq in range(8):
        await busy.chunk(handle, seq, DATA[seq * accept["chunk_size"] : (seq + 1) * accept["chunk_size"]])
    await asyncio.sleep(0.3)
    web.send(signal.SIGTERM)
    assert await idle.closes() == (1001, "going away")
    assert await busy.closes() == (1001, "going away")
    status, seconds = await web.ends(within=WEB_GRACE_SECONDS + 4)
    print(f"Redis {how.name}: exit {status} after {seconds:.2f} s")


async def test_takes_nothing_new_while_draining(rig: Rig, site: Site, alice: Person, connect: Connect) -> None:
    """A connection that was open before the listener was closed, and asks for a socket only now, gets 1001."""
    web, worker = rig.web(), rig.worker()
    web.wait_ready()
    worker.wait_ready()
    bob = await site.person()
    async with downloading(rig, site, bob) as deaf:  # keeps the process for a moment
        await deaf.hear_chunk(1)
        deaf.socket.transport.pause_reading()
        peer = await connect()
        early = socket.create_connection(("127.0.0.1", rig.port))
        await asyncio.sleep(0.2)
        web.send(signal.SIGTERM)
        await peer.hear("going_away")
        with contextlib.suppress(ConnectionClosed):
            await peer.offer(size=10)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", rig.port))
        async with connect_socket(
            rig.ws_url, sock=early, subprotocols=["delivery.v1"], additional_headers=bearer(alice), compression=None
        ) as late:
            with pytest.raises(ConnectionClosed) as closed:
                await late.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
        await peer.closes()
        assert not peer.has_heard("accept")
        deaf.socket.transport.abort()
    status, _ = await web.ends(within=WEB_GRACE_SECONDS)
    assert status == 0


async def test_plain_mode_is_closed_with_1001_too(rig: Rig, alice: Person) -> None:
    web = rig.web()
    web.wait_ready()
    async with connect_socket(rig.ws_url, additional_headers=bearer(alice), compression=None) as plain:
        await plain.send("small")
        assert json.loads(await plain.recv())["type"] == "stored"
        web.send(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            await plain.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
    status, _ = await web.ends(within=WEB_GRACE_SECONDS)
    assert status == 0


def bearer(person: Person) -> dict[str, str]:
    return {"Authorization": f"Bearer {person.token}"}
