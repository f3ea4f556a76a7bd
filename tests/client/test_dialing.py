"""Every failure of opening a connection is a reason to back off, or a clear end: never a traceback."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import pytest
import uvloop

from delivery import client
from delivery.client import dialing
from delivery.client.dialing import NotNow, dial
from delivery.errors import ConnectionStopped, UsageError
from tests.client.conftest import eventually
from tests.client.hopeless import FINAL, PASSING, Behaviour, closes, peer
from tests.client.server import CoreServer

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


async def _dial(url: str, token: str | None = "token") -> None:
    assert await dial(url, token, closing=asyncio.Event()) is None


async def _dial_peer(behaviour: Behaviour, token: str | None = "token") -> None:
    async with peer(behaviour) as url:
        await _dial(url, token)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", PASSING)
def test_what_may_pass_is_a_reason_to_back_off(loop: str, kind: str) -> None:
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner, pytest.raises(NotNow) as caught:
        runner.run(_dial_peer(PASSING[kind]))
    assert 3 < len(str(caught.value)) < 150
    assert "Errno" not in str(caught.value)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", FINAL)
def test_what_stays_is_a_clear_end(loop: str, kind: str) -> None:
    behaviour, words = FINAL[kind]
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner, pytest.raises(ConnectionStopped, match=words) as caught:
        runner.run(_dial_peer(behaviour))
    assert "secret" not in str(caught.value)
    assert "password" not in str(caught.value)


@pytest.mark.parametrize("kind", ["HTTP 401", "HTTP 403"])
async def test_a_missing_login_is_called_missing(kind: str) -> None:
    with pytest.raises(ConnectionStopped, match=r"there is no token; .* as DELIVERY_TOKEN"):
        await _dial_peer(FINAL[kind][0], None)


@pytest.mark.parametrize("loop", LOOPS)
def test_nobody_who_listens_is_a_reason_to_back_off(loop: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{unused.getsockname()[1]}/"
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner, pytest.raises(NotNow, match=r"^Connection refused$"):
            runner.run(_dial(url))


async def test_an_unknown_host_is_a_reason_to_back_off() -> None:
    with pytest.raises(NotNow, match=r"not known|failure in name resolution|No address"):
        await _dial("ws://localhost.invalid/")


async def test_tls_where_there_is_none_says_so() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        await reader.read()

    async with peer(plain) as url:
        with pytest.raises(NotNow, match="is it ws:// rather than wss://"):
            await _dial(url.replace("ws://", "wss://"))


async def test_tls_that_is_cut_is_a_reason_to_back_off(server: CoreServer) -> None:
    with pytest.raises(NotNow, match="closed before the server answered"):
        await _dial(server.url.replace("ws://", "wss://"))


@pytest.mark.parametrize(
    "url",
    [
        "http://host/",
        "host:8000",
        "ws://",
        "ws:///path",
        "ws://host:x/",
        "ws://host:70000/",
        "ws://[::1/",
        "ws://a..b/",
        f"ws://{'x' * 70}.test/",
        "ws://host/#part",
        "ws://name@host/",
    ],
)
def test_a_url_that_cannot_be_right_is_refused_at_once(url: str) -> None:
    with pytest.raises(UsageError):
        client.connect(url)


async def test_a_socks_proxy_without_its_package_is_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("socks_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(UsageError, match="SOCKS"):
        await _dial("ws://203.0.113.1/")


async def test_a_malformed_proxy_is_wrong_usage_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://name:secret@proxy.test/path")
    monkeypatch.setenv("https_proxy", "http://name:secret@proxy.test/path")
    with pytest.raises(UsageError, match="proxy") as caught:
        await _dial("ws://203.0.113.1/")
    assert "secret" not in str(caught.value)


async def test_a_client_goes_on_after_a_peer_that_closed_at_once(server: CoreServer) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    async with peer(closes) as url:
        port = int(url.split(":")[2].split("/")[0])
        connecting = client.connect(url, observer=lambda name, details: events.append((name, details)))
        entering = asyncio.ensure_future(connecting.__aenter__())
        await eventually(lambda: len(events) >= 2)
    await server.stop()
    await server.start(port)
    await asyncio.wait_for(entering, 20)
    await connecting.send(b"hello")
    await connecting.close()
    assert events[0] == ("refused", {**events[0][1], "url": url})
    assert "closed before the server answered" in events[0][1]["error"]


async def test_closing_at_the_moment_a_connection_opens_closes_it(
    server: CoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`close` finds no connection to close, and the one that is just there must not be served for ever."""
    opening = client.connect(server.url)
    closing: list[asyncio.Task[None]] = []
    handshake = dialing._handshake

    async def handshake_then_close(url: str, token: str | None) -> object:
        opened = await handshake(url, token)
        closing.append(asyncio.create_task(opening.close()))
        return opened

    monkeypatch.setattr(dialing, "_handshake", handshake_then_close)
    entering = asyncio.create_task(opening.__aenter__())
    await eventually(lambda: closing)
    await asyncio.wait_for(closing[0], 5)
    with pytest.raises(ConnectionStopped):
        await entering
    await eventually(lambda: not server.sessions)
