"""A canary for a token: it appears in no text, log, repr or traceback, whatever goes wrong."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from websockets.asyncio.server import ServerConnection

from delivery import client
from delivery.client.credentials import checked_token, without_credentials
from delivery.errors import DeliveryError, UsageError
from tests.client.hopeless import FINAL, PASSING, Behaviour, peer
from tests.client.server import CoreServer

CANARY = "c4n4ry:1wq:Z-_.~+/=="
STOPPING = [1000, 1003, 1007, 1008, 1009, 4400, 4401]


class Seen:
    """Everything that a program could have shown."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "websockets.server")  # the server of the test logs what it gets
        caplog.set_level(logging.DEBUG)  # the last call sets the handler's level, too
        self._caplog = caplog
        self._texts: list[str] = []

    def observe(self, name: str, details: dict[str, Any]) -> None:
        self._texts.append(json.dumps([name, details], default=repr))

    def show(self, thing: object) -> None:
        self._texts += [str(thing), repr(thing)]
        if isinstance(thing, BaseException):
            self._texts += traceback.format_exception(thing)
            self._texts += [repr(vars(link)) for link in _chain(thing)]

    @property
    def text(self) -> str:
        return "\n".join([*self._texts, self._caplog.text, *(repr(vars(record)) for record in self._caplog.records)])


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@pytest.fixture
def seen(caplog: pytest.LogCaptureFixture) -> Seen:
    return Seen(caplog)


async def _use(url: str, seen: Seen, *, seconds: float | None = None, token: str = CANARY) -> None:
    """Connect, send and receive as far as it goes; have `seen` see all of it."""
    try:
        using = client.connect(url, token, receive=True, chunk_size=4096, open_timeout=seconds, observer=seen.observe)
        seen.show(using)
        async with using:
            upload = using.start(b"bytes", to="user:1")
            seen.show(upload)
            seen.show(using.statistics)
            seen.show(await upload)
    except (DeliveryError, TimeoutError) as error:
        seen.show(error)


@pytest.mark.parametrize("kind", [*PASSING, *FINAL])
async def test_no_failure_of_dialing_shows_the_token(kind: str, seen: Seen) -> None:
    behaviour: Behaviour = PASSING[kind] if kind in PASSING else FINAL[kind][0]
    async with peer(behaviour) as url:
        await _use(url, seen, seconds=0.3 if kind in PASSING else 10)
    assert "Traceback" in seen.text
    assert "c4n4ry" not in seen.text


@pytest.mark.parametrize("code", STOPPING)
async def test_no_close_code_shows_the_token(code: int, server: CoreServer, seen: Seen) -> None:
    async def close(socket: ServerConnection) -> None:
        assert socket.request is not None
        assert socket.request.headers["Authorization"] == f"Bearer {CANARY}"
        await socket.close(code, "a reason")

    server._serve = close  # type: ignore[method-assign]
    await server.stop()
    await server.start()
    async with asyncio.timeout(20):
        await _use(server.url, seen)
    assert f'"code": {code}' in seen.text
    assert "c4n4ry" not in seen.text


@pytest.mark.parametrize("code", ["forbidden", "too_large", "quota", "mismatch", "expired", "unsupported"])
async def test_no_refusal_shows_the_token(code: str, server: CoreServer, seen: Seen) -> None:
    server.token = CANARY
    server.answer = lambda offer: {"code": code}
    await _use(server.url, seen)
    assert code in seen.text
    assert "c4n4ry" not in seen.text


async def test_a_success_at_debug_level_shows_that_there_was_a_login_and_not_which(
    server: CoreServer, seen: Seen
) -> None:
    server.token = CANARY
    await _use(server.url, seen)
    ours = [record for record in seen._caplog.records if record.name == "websockets.client.delivery"]
    assert any("Authorization: [hidden]" in record.getMessage() for record in ours)
    assert "c4n4ry" not in seen.text


async def test_white_space_around_a_token_does_not_count(server: CoreServer) -> None:
    server.token = CANARY
    async with client.connect(server.url, f"  {CANARY}\r\n") as connected:
        await connected.send(b"bytes")


@pytest.mark.parametrize("token", ["a\nb", "a b", "a\x00b", "a\x7f", "tökén", "a\u2028b"])
async def test_a_malformed_token_is_wrong_usage_without_its_value(token: str, seen: Seen, tmp_path: Path) -> None:
    await _use("ws://127.0.0.1:1/", seen, token=f"{CANARY}{token}")
    assert "UsageError" in seen.text
    assert "c4n4ry" not in seen.text
    assert token not in seen.text


@pytest.mark.parametrize("token", [None, "", " \n"])
def test_nothing_is_no_token(token: str | None) -> None:
    assert checked_token(token) is None


def test_a_token_beside_a_login_in_the_url_is_wrong_usage(seen: Seen) -> None:
    with pytest.raises(UsageError, match="one of them") as caught:
        client.connect(f"ws://name:{quote(CANARY, safe='')}@host/", CANARY)
    seen.show(caught.value)
    assert "c4n4ry" not in seen.text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("wss://name:secret@host:8443/ws/?token=secret#secret", "wss://host:8443/ws/"),
        ("ws://host/ws/delivery/", "ws://host/ws/delivery/"),
        ("ws://secret@[::1", "ws://..."),
        ("ws://name:sec/ret@host/", "ws://..."),
        ("http://name:secret@host/", "http://host/"),
        ("127.0.0.1:8000", "127.0.0.1:8000"),
        ("localhost:8000/ws/?token=secret#secret", "localhost:8000/ws/"),
        ("name:sec?ret@host", "..."),
    ],
)
def test_a_url_is_shown_without_its_credentials(url: str, shown: str) -> None:
    assert without_credentials(url) == shown


async def test_a_url_with_a_login_is_named_without_it(seen: Seen) -> None:
    url = f"ws://name:{quote(CANARY, safe='')}@127.0.0.1:1/?token={quote(CANARY)}"
    using = client.connect(url, open_timeout=0.2, observer=seen.observe)
    with pytest.raises(TimeoutError, match=r"ws://127.0.0.1:1/ did not answer") as caught:
        await using.__aenter__()
    seen.show(caught.value)
    assert "c4n4ry" not in seen.text
