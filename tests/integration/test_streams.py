"""Streams whose length nobody knows, through the shipped stack: from a producer that pauses, over connections that are cut."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from delivery.models import Transfer
from tests.client.conftest import eventually
from tests.client.proxy import Proxy
from tests.integration.conftest import OpenClient
from tests.launch.live import ROOT, clean_environment
from tests.stack import Person, Site, WebProcess

STALL_SECONDS = 1.0
# The command as it is shipped, but that it loses patience with a server after one second.
COMMAND = f"""
from delivery.protocol import sender
sender.STALL_SECONDS = {STALL_SECONDS}
from delivery.client.__main__ import script
script()
"""


async def received(recipient: Any, folder: Path) -> bytes:
    """Save the next delivery; return its bytes."""
    async with asyncio.timeout(30):
        incoming = await anext(recipient.deliveries())
        path = await incoming.save(folder)
    return await asyncio.to_thread(Path(path).read_bytes)


class Sending:
    """`send -` as a process; its JSON lines in `events`."""

    def __init__(self, url: str, person: Person, state: Path, *arguments: str) -> None:
        self.events: list[dict[str, Any]] = []
        self._arguments = ("send", "-", "--url", url, "--json", *arguments)
        self._environment = clean_environment(DELIVERY_TOKEN=person.token, XDG_STATE_HOME=str(state))

    async def __aenter__(self) -> Sending:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", COMMAND, *self._arguments),
            cwd=ROOT,
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._reading = asyncio.ensure_future(self._read())
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._reading
        await self._process.wait()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.events.append(json.loads(line))

    async def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        await self._process.stdin.drain()

    async def end(self) -> int:
        """Close its standard input; return its exit status."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return await asyncio.wait_for(self._process.wait(), 30)

    @property
    def transfer(self) -> str | None:
        return next((event["transfer"] for event in self.events if event["event"] == "progress"), None)


def _position(transfer: str | None) -> int:
    return Transfer.objects.get(key=transfer, direction="upload").position


async def test_a_producer_of_standard_input_may_pause_longer_than_a_stall(
    site: Site, quick: WebProcess, open_client: OpenClient, alice: Person, bob: Person, tmp_path: Path
) -> None:
    """What it gave before the pause is stored meanwhile; nobody calls the pause a stall, or the end."""
    data = random.Random(1).randbytes(600_000)
    recipient = await open_client(bob, quick.ws_url, receive=True)
    arguments = ("--to", bob.address, "--chunk-size", "65536")
    async with Sending(quick.ws_url, alice, tmp_path / "state", *arguments) as sending:
        for at in range(0, len(data), 200_000):
            await sending.write(data[at : at + 200_000])
            whole = (at + 200_000) // 65_536 * 65_536
            await eventually(lambda: sending.transfer is not None, seconds=20)
            await site.until(lambda whole=whole: _position(sending.transfer) >= whole, what="stored chunks")
            until = asyncio.get_running_loop().time() + 2.5 * STALL_SECONDS
            await eventually(lambda until=until: asyncio.get_running_loop().time() > until)
        assert await sending.end() == 0
    assert {event["event"] for event in sending.events} == {"connected", "progress", "done", "summary"}
    assert sending.events[-1]["connections"] == 1
    (done,) = [event for event in sending.events if event["event"] == "done"]
    assert (done["size"], done["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert await received(recipient, tmp_path / "in") == data
    assert await site.content(done["payload"]) == data


async def test_an_async_generator_of_2_4_megabytes_survives_cuts(
    site: Site, open_client: OpenClient, alice: Person, bob: Person, tmp_path: Path
) -> None:
    """Each cut comes while a block is being produced, which is there only on the next connection."""
    data = random.Random(2).randbytes(2_400_000)
    proxy = Proxy(site.stack.port)
    await proxy.start()
    recipient = await open_client(bob, receive=True)
    sender = await open_client(alice, proxy.url)
    cuts = 0

    async def produce() -> AsyncIterator[bytes]:
        nonlocal cuts
        for at in range(0, len(data), 60_000):
            if at % 600_000 == 300_000:
                cuts += 1
                connections = sender.statistics.connections
                asyncio.get_running_loop().call_soon(proxy.cut)
                await eventually(lambda: sender.statistics.connections > connections)  # noqa: B023 - awaited here
            yield data[at : at + 60_000]

    try:
        receipt = await asyncio.wait_for(sender.send(produce(), to=[bob.address]), 60)
    finally:
        await proxy.stop()
    assert sender.statistics.closes[1006] == cuts == 4
    assert (receipt.size, receipt.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert await received(recipient, tmp_path) == data
    assert await site.content(receipt.payload) == data
