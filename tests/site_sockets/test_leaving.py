"""A site's own sockets when a web process or the last worker has gone."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect as open_socket

from tests.going_away.rig import Rig, make_template, rigs
from tests.site_sockets.conftest import Member, member
from tests.site_sockets.hearing import close_of, hear, json_of
from tests.stack import Site, site_of

SETTINGS = {"DJANGO_SETTINGS_MODULE": "tests.site_sockets.settings", "CELERY_APP": "project"}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_template(tmp_path_factory.mktemp("sockets") / "template", **SETTINGS)


@pytest.fixture
def rig(tmp_path: Path, template: Path) -> Iterator[Rig]:
    with rigs(tmp_path, template) as new:
        rig = new(**SETTINGS)
        web = rig.web()
        web.wait_ready()
        yield rig


@pytest.fixture
def site(rig: Rig, django_db_blocker: Any) -> Iterator[Site]:
    with django_db_blocker.unblock(), site_of(rig) as site:  # type: ignore[arg-type]
        yield site


@pytest.fixture
async def alice(site: Site) -> Member:
    return await member(site)


def own(rig: Rig, path: str, who: Member) -> Any:
    headers = {"Cookie": f"sessionid={who.session}"}
    return open_socket(f"ws://127.0.0.1:{rig.port}/ws/{path}/", additional_headers=headers, max_size=None, proxy=None)


def plain(rig: Rig, who: Member) -> Any:
    return open_socket(rig.ws_url, additional_headers={"Authorization": f"Bearer {who.token}"}, proxy=None)


async def test_every_socket_is_closed_with_1001(rig, alice):
    """Idle ones, one whose message is being stored, one that does not read, and plain ones."""
    worker = rig.worker()
    worker.wait_ready()
    async with contextlib.AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(own(rig, "json", alice)) for _ in range(3)]
        terminal = await stack.enter_async_context(plain(rig, alice))
        busy = await stack.enter_async_context(own(rig, "json", alice))
        await terminal.send("hello")
        assert (await hear(terminal))["type"] == "stored"
        await busy.send(json_of(20_000_000))
        await asyncio.sleep(0.2)
        web = rig._processes[1]
        web.send(signal.SIGTERM)
        told = await hear(busy)  # what had come whole is handed over before the socket is closed
        assert told["size"] == 20_000_000
        codes = [(await close_of(socket))[0] for socket in (*idle, terminal, busy)]
        assert codes == [1001] * 5
        status, seconds = await web.ends(within=15)
        assert (status, seconds < 10) == (0, True)


async def test_without_a_worker_small_things_go_on_and_large_ones_are_refused(rig, alice):
    async with own(rig, "lenient", alice) as socket, own(rig, "json", alice) as strict, plain(rig, alice) as terminal:
        await socket.send(json_of(2000))  # inline: no worker needed
        assert (await hear(socket))["size"] == 2000
        await socket.send(json_of(70_000))
        assert await hear(socket) == {"refused": "busy"}
        await strict.send(json_of(70_000))
        assert (await close_of(strict))[0] == 1013
        await terminal.send("small")
        assert (await hear(terminal))["type"] == "stored"
        await terminal.send(b"x" * 70_000)
        failed = await hear(terminal)
        assert (failed["type"], failed["code"]) == ("failed", "busy")
        await terminal.send("small again")
        assert (await hear(terminal))["size"] == 11


async def test_a_peer_that_does_not_read_does_not_hold_up_the_end(rig, alice):
    """Its close waits behind what it does not read; it is given up after 2 s."""
    async with own(rig, "text", alice) as socket:
        socket.transport.pause_reading()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.5):
                while True:
                    await socket.send("x" * 60_000)  # comes back, until every buffer on the way is full
        web = rig._processes[1]
        web.send(signal.SIGTERM)
        status, seconds = await web.ends(within=20)
        assert (status, seconds < 10) == (0, True)
