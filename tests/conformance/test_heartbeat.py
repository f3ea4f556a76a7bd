"""PROTOCOL section 5, heartbeats and swallowed messages: on a server whose heartbeat a test can wait for."""

from __future__ import annotations

import asyncio

from tests.conformance.conftest import Connect
from tests.conformance.peer import CHUNK, Peer
from tests.conformance.test_deliveries import accept, send
from tests.quick_settings import HEARTBEAT_SECONDS
from tests.stack import Person, Site, WebProcess


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_the_server_pings_after_a_heartbeat_of_silence(
    connect: Connect, quick: WebProcess, alice: Person
) -> None:
    peer = await connect(alice, url=quick.ws_url, answers=False)
    assert peer.welcome["heartbeat"] == HEARTBEAT_SECONDS
    began = now()
    ping = await peer.hear("ping")
    assert 0.5 * HEARTBEAT_SECONDS < now() - began < 3 * HEARTBEAT_SECONDS
    assert isinstance(ping["id"], int)


async def test_a_peer_that_answers_stays(connect: Connect, quick: WebProcess, alice: Person) -> None:
    peer = await connect(alice, url=quick.ws_url, answers=False)
    began = now()
    numbers = []
    while now() - began < 5 * HEARTBEAT_SECONDS:
        ping = await peer.hear("ping")
        numbers.append(ping["id"])
        await peer.say("pong", id=ping["id"])
    assert len(numbers) == len(set(numbers)) >= 3


async def test_a_peer_that_says_anything_at_all_stays(connect: Connect, quick: WebProcess, alice: Person) -> None:
    peer = await connect(alice, url=quick.ws_url, answers=False)
    handle, _ = await peer.offer(size=1024 * 1024, chunk_size=4_096)
    await peer.hear("accept")
    began, seq = now(), 0
    while now() - began < 4 * HEARTBEAT_SECONDS:
        await peer.chunk(handle, seq, bytes(4_096))
        await peer.hear("ping")  # paces us: nothing but chunks is said
        seq += 1
    await peer.settle()


async def test_a_silent_peer_is_dropped(connect: Connect, quick: WebProcess, alice: Person) -> None:
    peer = await connect(alice, url=quick.ws_url, answers=False)
    began = now()
    await peer.closes()
    assert 2 * HEARTBEAT_SECONDS < now() - began < 5 * HEARTBEAT_SECONDS


async def test_transfers_of_a_silent_peer_can_be_resumed(
    connect: Connect, quick: WebProcess, alice: Person, site: Site
) -> None:
    silent = await connect(alice, url=quick.ws_url, answers=False)
    handle, transfer = await silent.offer(size=2 * CHUNK, chunk_size=65_536)
    await silent.hear("accept")
    await silent.chunk(handle, 0, bytes(65_536))
    await silent.closes()
    await site.let_go(transfer)
    peer = await connect(alice)
    await peer.offer(transfer=transfer, size=2 * CHUNK, chunk_size=65_536)
    assert (await peer.hear("accept"))["seq"] == 1


async def test_what_came_is_acked_before_the_pong(connect: Connect, alice: Person) -> None:
    peer = await connect(alice)
    handle, _ = await peer.offer(size=4 * CHUNK)
    await peer.hear("accept")
    await peer.chunk(handle, 0, bytes(CHUNK))
    await peer.say("ping", id=7)
    await peer.hear("pong", id=7)
    assert (await peer.hear("ack", handle=handle, seconds=0))["received"] == 1


async def taken_in(connect: Connect, person: Person) -> tuple[Peer, int, float]:
    """Accept a delivery and take its first chunks in; return when the last one of them came."""
    peer = await connect(person, receive=True)
    handle = await accept(peer, await peer.hear("offer"), limit=3)
    for _ in range(3):
        await peer.hear_chunk(handle)
    return peer, handle, now()


async def test_chunks_that_two_pongs_do_not_count_were_swallowed(connect: Connect, site: Site, alice: Person) -> None:
    await send(site, alice)
    peer, _, began = await taken_in(connect, alice)
    code, reason = await peer.closes(seconds=15)
    assert (code, reason) == (1009, "messages lost on the way")
    assert 5.5 < now() - began < 10


async def test_a_client_that_counts_chunks_behind_its_pong_stays(connect: Connect, site: Site, alice: Person) -> None:
    """As clients of before this rule do, at most half a second later."""
    await send(site, alice)
    peer, handle, _ = await taken_in(connect, alice)
    peer.answers = False
    ping = await peer.hear("ping")
    await peer.say("pong", id=ping["id"])
    await asyncio.sleep(0.5)
    await peer.say("ack", handle=handle, seq=0, received=3, limit=3)
    await asyncio.sleep(2.0)
    await peer.settle()
