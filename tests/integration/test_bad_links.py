"""Links that do not hold: what was stored is not sent again, and there is progress on each of them."""

from __future__ import annotations

import asyncio
import random
import time

from delivery import deliver
from rig.proxy import Conditions, Proxy
from tests.conformance.peer import sha256
from tests.integration.conftest import OpenClient
from tests.quick_settings import HEARTBEAT_SECONDS, WINDOW_BYTES
from tests.stack import Person, Site, WebProcess

MIB = 1024 * 1024
DATA = random.Random(6).randbytes(3 * MIB)


async def test_an_upload_over_sockets_that_live_one_second_each(
    open_client: OpenClient, site: Site, alice: Person
) -> None:
    async with Proxy(site.stack.port, Conditions(life_seconds=1.0, rate=MIB)) as link:
        client = await open_client(alice, link.ws_url, chunk_size=65_536)
        receipt = await asyncio.wait_for(client.send(DATA), 60)
    assert receipt.sha256 == sha256(DATA)
    assert await site.content(receipt.payload) == DATA
    assert 3 <= link.opened <= 10  # 3 MiB at 1 MiB/s: each of them got on


async def test_a_delivery_over_sockets_that_live_one_second_each(
    open_client: OpenClient, site: Site, alice: Person, bob: Person
) -> None:
    await (await open_client(alice)).send(DATA, to=[bob.address])
    async with Proxy(site.stack.port, Conditions(life_seconds=1.0, rate=MIB)) as link:
        client = await open_client(bob, link.ws_url, receive=True, chunk_size=65_536)
        async with asyncio.timeout(60):
            async for incoming in client.deliveries():
                received = await incoming.read()
                break
    assert bytes(received) == DATA
    assert 3 <= link.opened <= 10


async def test_an_upload_whose_link_is_cut_again_and_again(open_client: OpenClient, site: Site, alice: Person) -> None:
    data = random.Random(8).randbytes(72 * MIB)  # progress is heard of with each ack, a segment of 16 MiB
    async with Proxy(site.stack.port) as link:
        marks = [2 * MIB, 20 * MIB, 40 * MIB]

        def cut(progress: object) -> None:
            if marks and progress.received > marks[0]:  # type: ignore[attr-defined]
                marks.pop(0)
                link.cut()

        client = await open_client(alice, link.ws_url)
        receipt = await client.send(data, progress=cut)
    assert receipt.sha256 == sha256(data)
    assert client.statistics.closes[1006] >= 2
    assert await site.content(receipt.payload) == data


SLOW = Conditions(rate=40_000, slice_bytes=2_000)
SLOW_DATA = random.Random(9).randbytes(200_000)  # one chunk, of four times 2.5 heartbeats on such a line


async def test_an_upload_whose_chunk_takes_longer_than_the_heartbeats_allow(
    open_client: OpenClient, quick: WebProcess, site: Site, alice: Person
) -> None:
    async with Proxy(quick.port, SLOW, buffer_bytes=4096) as link:
        client = await open_client(alice, link.ws_url)
        began = time.monotonic()
        receipt = await asyncio.wait_for(client.send(SLOW_DATA), 60)
    assert time.monotonic() - began > 4 * HEARTBEAT_SECONDS
    assert client.statistics.closes == {}
    assert await site.content(receipt.payload) == SLOW_DATA


async def test_a_delivery_whose_chunk_takes_longer_than_the_heartbeats_allow(
    open_client: OpenClient, quick: WebProcess, site: Site, alice: Person
) -> None:
    await site.run(deliver, SLOW_DATA, alice.address, name="slow.bin")
    async with Proxy(quick.port, SLOW, buffer_bytes=4096) as link:
        client = await open_client(alice, link.ws_url, receive=True)
        began = time.monotonic()
        async with asyncio.timeout(60):
            incoming = await anext(client.deliveries())
            received = await incoming.read()
    assert time.monotonic() - began > 4 * HEARTBEAT_SECONDS
    assert bytes(received) == SLOW_DATA
    assert client.statistics.closes == {}


SWALLOWED = 32 * 1024
WHOLE = random.Random(10).randbytes(6 * MIB)


async def test_an_upload_through_a_proxy_that_swallows_large_messages(
    open_client: OpenClient, site: Site, alice: Person
) -> None:
    async with Proxy(site.stack.port, Conditions(most_message=SWALLOWED)) as link:
        client = await open_client(alice, link.ws_url)
        began = time.monotonic()
        receipt = await asyncio.wait_for(client.send(WHOLE), 60)
        assert time.monotonic() - began < 60
    assert link.over_limit > 0
    assert set(client.statistics.closes) == {1009}
    assert await site.content(receipt.payload) == WHOLE


async def test_a_delivery_through_a_proxy_that_swallows_large_messages(
    open_client: OpenClient, site: Site, alice: Person
) -> None:
    await site.run(deliver, WHOLE, alice.address, name="whole.bin")
    async with Proxy(site.stack.port, Conditions(most_message=SWALLOWED)) as link:
        client = await open_client(alice, link.ws_url, receive=True)
        async with asyncio.timeout(60):
            incoming = await anext(client.deliveries())
            received = await incoming.read()
    assert link.over_limit > 0
    assert set(client.statistics.closes) == {1009}
    assert bytes(received) == WHOLE


async def test_where_neither_a_gap_nor_a_finish_tells_pings_do(
    open_client: OpenClient, quick: WebProcess, site: Site, alice: Person
) -> None:
    """The window is full of chunks that were swallowed, so that nothing more comes behind them."""
    data = DATA[:MIB]
    assert len(data) > WINDOW_BYTES
    async with Proxy(quick.port, Conditions(most_message=SWALLOWED)) as link:
        client = await open_client(alice, link.ws_url, chunk_size=65_536)
        receipt = await asyncio.wait_for(client.send(data), 40)
    assert client.statistics.closes == {1009: 2}  # 32 KiB and its header are too much as well
    assert await site.content(receipt.payload) == data
