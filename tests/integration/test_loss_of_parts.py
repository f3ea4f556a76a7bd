"""SIGKILL of each part, in the middle of transfers in both directions: they go on by themselves when it is back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest

import delivery.client
from rig.proxy import Conditions, Proxy
from tests.conformance.peer import sha256
from tests.integration.conftest import OpenClient
from tests.stack import Site, Stack, site_of

MIB = 1024 * 1024
DATA = random.Random(10).randbytes(40 * MIB + 7)


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of this module's own: its parts are killed."""
    stack = Stack(tmp_path_factory.mktemp("fragile") / "var", "--workers=1", "--concurrency=2")
    try:
        yield stack.wait_ready()
    finally:
        stack.stop()


@pytest.fixture
def shipped(fragile: Stack) -> Stack:
    return fragile


@pytest.fixture
def site(fragile: Stack, django_db_blocker: pytest.FixtureRequest) -> Iterator[Site]:
    with django_db_blocker.unblock(), site_of(fragile) as site:  # type: ignore[attr-defined]
        yield site


async def receive(client: delivery.client.Client) -> bytes:
    async for incoming in client.deliveries():
        return bytes(await incoming.read())
    raise AssertionError("closed before anything was offered")


@pytest.mark.parametrize("kind", ["worker", "web", "redis"])
async def test_transfers_outlive_a_killed_part(open_client: OpenClient, site: Site, fragile: Stack, kind: str) -> None:
    """At 8 MiB/s, so that an upload and a delivery are both under way when the part is killed."""
    alice, bob = await site.person(), await site.person()
    before = await (await open_client(alice)).send(DATA, to=[bob.address])
    killed: list[asyncio.Future[None]] = []
    async with Proxy(fragile.port, Conditions(rate=8 * MIB)) as link:
        sender = await open_client(alice, link.ws_url)
        recipient = await open_client(bob, link.ws_url, receive=True)
        loop = asyncio.get_running_loop()

        def kill(progress: object) -> None:
            if not killed and progress.received > 6 * MIB:  # type: ignore[attr-defined]
                killed.append(loop.run_in_executor(None, fragile.kill, kind))

        async with asyncio.timeout(90):
            receipt, received = await asyncio.gather(sender.send(DATA[::-1], progress=kill), receive(recipient))
            await killed[0]
    assert receipt.sha256 == sha256(DATA[::-1])
    assert await site.content(receipt.payload) == DATA[::-1]
    assert sha256(received) == before.sha256
    assert sender.statistics.resent_bytes <= 32 * MIB  # at most one window
