"""PROTOCOL section 5, heartbeats: on a server whose heartbeat a test can wait for."""

from __future__ import annotations

import asyncio

from tests.conformance.conftest import Connect
from tests.conformance.peer import CHUNK
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
