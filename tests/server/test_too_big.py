"""Messages that are too big for what lies on the way: a proxy that says nothing, a web server that says 1009."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from delivery import conf
from delivery.checks import integration
from delivery.client import connect
from delivery.client.chunk_ceilings import Ceilings
from delivery.errors import ConnectionStopped
from delivery.server import message_limits
from tests.launch.live import ROOT, clean_environment, free_port, wait_until
from tests.stack import Site, Stack, WebProcess

SETTINGS = "tests.server.small_messages_settings"
PROXY_LIMIT = 32 * 1024


class SilentProxy:
    """Forwards WebSocket messages of up to `limit` bytes, both ways; a larger one loses its connection without a word.

    Keeps the size of the largest message that it let through.
    """

    def __init__(self, target: int, limit: int) -> None:
        self.port = 0
        self.cuts = 0
        self.largest = 0
        self._target = target
        self._limit = limit
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/delivery/"

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[SilentProxy]:
        listening = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = listening.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            listening.close()
            for task in list(self._serving):
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, there = await asyncio.open_connection("127.0.0.1", self._target)
        pumps = [asyncio.create_task(self._pump(*pair)) for pair in ((reader, there), (back, writer))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            writer.transport.abort()
            there.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward the handshake, then frame by frame (RFC 6455 section 5.2)."""
        writer.write(await reader.readuntil(b"\r\n\r\n"))
        while True:
            head = await reader.readexactly(2)
            length = head[1] & 0x7F
            if length >= 126:
                more = await reader.readexactly(2 if length == 126 else 8)
                head, length = head + more, int.from_bytes(more)
            if length > self._limit:
                self.cuts += 1
                return
            self.largest = max(self.largest, length)
            mask = 4 if head[1] & 0x80 else 0
            writer.write(head + await reader.readexactly(mask + length))
            await writer.drain()


@pytest.fixture(scope="module")
def hasty(shipped: Stack) -> Iterator[WebProcess]:
    process = WebProcess(shipped, SETTINGS)
    try:
        yield process
    finally:
        process.stop()


@pytest.fixture
async def proxy(hasty: WebProcess) -> AsyncIterator[SilentProxy]:
    async with SilentProxy(hasty.port, PROXY_LIMIT).open() as proxy:
        yield proxy


@pytest.fixture
def ceilings(tmp_path: Path) -> Ceilings:
    return Ceilings(tmp_path / "ceilings.json")


async def test_an_upload_gets_through_a_proxy_that_cuts_without_a_word(proxy, site, ceilings, tmp_path):
    alice = await site.person()
    data = os.urandom(3_000_000)
    async with asyncio.timeout(40), connect(proxy.ws_url, alice.token, ceilings=ceilings) as client:
        receipt = await client.send(data)
        assert set(client.statistics.closes) == {1006}
    assert await site.content(receipt.payload) == data
    assert proxy.largest == 16_384 + 12
    cuts = proxy.cuts
    again = Ceilings(tmp_path / "ceilings.json")  # as the next process reads it
    async with asyncio.timeout(20), connect(proxy.ws_url, alice.token, ceilings=again) as client:
        await client.send(data)
        assert not client.statistics.closes
    assert proxy.cuts == cuts


async def test_a_delivery_gets_through_a_proxy_that_cuts_without_a_word(proxy, site, ceilings):
    from delivery import deliver

    alice = await site.person()
    data = os.urandom(3_000_000)
    await site.run(deliver, data, to=alice.address)
    async with asyncio.timeout(40), connect(proxy.ws_url, alice.token, receive=True, ceilings=ceilings) as client:
        async for incoming in client.deliveries():
            assert await incoming.read() == data
            break
        assert set(client.statistics.closes) == {1006}
    assert PROXY_LIMIT / 2 < proxy.largest <= PROXY_LIMIT


# -- a web server whose limit is below ours ------------------------------------------------------------------------


class Uvicorn:
    """The site under a plain uvicorn, with a message limit of its own."""

    def __init__(self, stack: Stack, limit: int) -> None:
        self.port = free_port()
        self._log = stack.var.parent / f"uvicorn-{self.port}.log"
        command = [sys.executable, "-m", "uvicorn", "project.asgi:application", "--ws=websockets-sansio"]
        variables = {"DELIVERY_VAR": str(stack.var), "DJANGO_SETTINGS_MODULE": SETTINGS}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, f"--port={self.port}", f"--ws-max-size={limit}"],
                cwd=ROOT,
                env=clean_environment(**variables),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(lambda: "Uvicorn running" in self.log(), what="uvicorn")

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/delivery/"

    def log(self) -> str:
        return self._log.read_text()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)


@contextlib.contextmanager
def uvicorn_of(stack: Stack, limit: int) -> Iterator[Uvicorn]:
    process = Uvicorn(stack, limit)
    try:
        yield process
    finally:
        process.stop()


async def test_an_upload_gets_through_a_server_whose_limit_is_below_ours(shipped, site, ceilings):
    """uvicorn's own 1009 often comes as 1006: it closes while the client is still sending."""
    alice = await site.person()
    data = os.urandom(2_000_000)
    with uvicorn_of(shipped, 40_000) as limited:
        async with asyncio.timeout(40), connect(limited.ws_url, alice.token, ceilings=ceilings) as client:
            receipt = await client.send(data)
            assert set(client.statistics.closes) <= {1006, 1009}
        assert await site.content(receipt.payload) == data
        assert "the web server takes messages up to 40000 bytes, below our limits of 2097152" in limited.log()
        assert limited.log().count("the web server takes") == 1


async def test_a_server_that_takes_nothing_is_named_in_the_error(shipped, site, ceilings):
    """At the floor of 4,096 bytes nothing smaller can be tried."""
    alice = await site.person()
    with uvicorn_of(shipped, 1000) as limited:
        connecting = connect(limited.ws_url, alice.token, chunk_size=4096, ceilings=ceilings)
        async with asyncio.timeout(40), connecting as client:
            with pytest.raises(ConnectionStopped, match="uvicorn: ws_max_size"):
                await client.send(b"x" * 4000)


@pytest.mark.parametrize("limit", [None, "", "67108864", "many"])
def test_a_server_limit_that_suffices_or_is_unknown_is_not_warned_of(monkeypatch, limit):
    if limit is None:
        monkeypatch.delenv("UVICORN_WS_MAX_SIZE", raising=False)
    else:
        monkeypatch.setenv("UVICORN_WS_MAX_SIZE", limit)
    assert integration.check_server() == []


def test_a_server_limit_below_ours_is_warned_of(monkeypatch):
    monkeypatch.setenv("UVICORN_WS_MAX_SIZE", str(conf.current().plain_max_message - 1))
    (warning,) = integration.check_server()
    assert warning.id == "delivery.W005"
    assert str(conf.current().server_message_limit()) in warning.hint


def test_daphne_is_warned_of(monkeypatch):
    from django.conf import settings

    monkeypatch.setattr(settings, "INSTALLED_APPS", ["daphne", *settings.INSTALLED_APPS])
    assert [warning.id for warning in integration.check_server()] == ["delivery.W006"]


def test_a_server_that_shows_no_limit_is_left_alone():
    async def receive() -> None: ...

    assert message_limits.message_limit(receive) is None


async def test_our_own_command_sets_a_limit_that_suffices(shipped: Stack, site: Site):
    assert "the web server takes" not in shipped.log()
