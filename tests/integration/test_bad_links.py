"""Links that do not hold: what was stored is not sent again, and there is progress on each of them."""

from __future__ import annotations

import asyncio
import random

from tests.conformance.peer import sha256
from tests.integration.conftest import OpenClient
from tests.integration.links import Link
from tests.stack import Person, Site

MIB = 1024 * 1024
DATA = random.Random(6).randbytes(3 * MIB)


async def test_an_upload_over_sockets_that_live_one_second_each(
    open_client: OpenClient, site: Site, alice: Person
) -> None:
    async with Link(site.stack.port, life_seconds=1.0, bytes_per_second=MIB).open() as link:
        client = await open_client(alice, link.ws_url, chunk_size=65_536)
        receipt = await asyncio.wait_for(client.send(DATA), 60)
    assert receipt.sha256 == sha256(DATA)
    assert await site.content(receipt.payload) == DATA
    assert 3 <= link.connections <= 10  # 3 MiB at 1 MiB/s: each of them got on


async def test_a_delivery_over_sockets_that_live_one_second_each(
    open_client: OpenClient, site: Site, alice: Person, bob: Person
) -> None:
    await (await open_client(alice)).send(DATA, to=[bob.address])
    async with Link(site.stack.port, life_seconds=1.0, bytes_per_second=MIB).open() as link:
        client = await open_client(bob, link.ws_url, receive=True, chunk_size=65_536)
        async with asyncio.timeout(60):
            async for incoming in client.deliveries():
                received = await incoming.read()
                break
    assert bytes(received) == DATA
    assert 3 <= link.connections <= 10


async def test_an_upload_whose_link_is_cut_again_and_again(open_client: OpenClient, site: Site, alice: Person) -> None:
    data = random.Random(8).randbytes(72 * MIB)  # progress is heard of with each ack, a segment of 16 MiB
    async with Link(site.stack.port).open() as link:
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
