"""Plain mode (PROTOCOL section 7), spoken by clients that are not ours: websocket-client, and its terminal `wsdump`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import websocket
from websocket import ABNF, WebSocketConnectionClosedException

from delivery import conf
from tests.stack import Person, Site, Stack

LIMIT = 16 * 1024 * 1024
INLINE = 65_536


class Device:
    """A socket of websocket-client's, in threads: it knows no asyncio."""

    def __init__(self, socket: websocket.WebSocket) -> None:
        self.socket = socket

    async def send(self, message: str | bytes) -> None:
        opcode = ABNF.OPCODE_TEXT if isinstance(message, str) else ABNF.OPCODE_BINARY
        await asyncio.to_thread(self.socket.send, message, opcode)

    async def send_frame(self, opcode: int, data: bytes, *, fin: bool) -> None:
        await asyncio.to_thread(self.socket.send_frame, ABNF(int(fin), 0, 0, 0, opcode, 1, data))

    async def answer(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await asyncio.to_thread(self.socket.recv))
        return found

    async def closes(self) -> int:
        """Wait for the server's close; return its code."""
        return await asyncio.to_thread(self._close_code)

    def _close_code(self) -> int:
        try:
            while True:
                opcode, data = self.socket.recv_data(control_frame=True)
                if opcode == ABNF.OPCODE_CLOSE:
                    return int.from_bytes(data[:2])
        except (WebSocketConnectionClosedException, OSError):
            return 1006


Open = Callable[..., Awaitable[Device]]


@pytest.fixture
async def open_plain(shipped: Stack) -> AsyncIterator[Open]:
    """Return a function that opens a socket as an old device does: a token, no subprotocol."""
    opened: list[websocket.WebSocket] = []

    async def open_plain(who: Person | None, query: str = "", **options: Any) -> Device:
        header = [f"Authorization: Bearer {who.token}"] if who else []
        url = shipped.ws_url + query
        opened.append(await asyncio.to_thread(websocket.create_connection, url, header=header, timeout=20, **options))
        return Device(opened[-1])

    yield open_plain
    for socket in opened:
        socket.shutdown()


@pytest.fixture
async def alice(site: Site) -> Person:
    return await site.person()


@pytest.fixture
async def bob(site: Site) -> Person:
    return await site.person()


@pytest.mark.parametrize("size", [0, 1, INLINE, INLINE + 1, 3_000_000])
async def test_a_binary_message_becomes_a_payload(open_plain, site, alice, size):
    data = bytes(range(256)) * (size // 256 + 1)
    socket = await open_plain(alice)
    await socket.send(data[:size])
    told = await socket.answer()
    assert told.pop("payload")
    assert told == {"type": "stored", "size": size, "sha256": hashlib.sha256(data[:size]).hexdigest()}


@pytest.mark.parametrize("text", ["", "grüß dich", "y" * (INLINE + 1)])
async def test_a_text_message_becomes_a_payload(open_plain, site, alice, text):
    socket = await open_plain(alice)
    await socket.send(text)
    told = await socket.answer()
    assert await site.content(told["payload"]) == text.encode()
    row = await site.payload(told["payload"])
    assert (row.content_type, row.owner_id, row.expires_at) == ("text/plain; charset=utf-8", alice.pk, None)


async def test_several_messages_are_answered_in_order(open_plain, site, alice):
    socket = await open_plain(alice)
    sizes = [1, 200_000, 0, 70_000, 2]
    for size in sizes:
        await socket.send(b"x" * size)
    assert [(await socket.answer())["size"] for _ in sizes] == sizes


@pytest.mark.parametrize("kind", ["text", "binary"])
async def test_the_limit_is_taken_and_one_byte_more_is_refused(open_plain, site, alice, kind):
    assert conf.Settings().plain_max_message == LIMIT
    socket = await open_plain(alice)
    await socket.send("x" * LIMIT if kind == "text" else b"x" * LIMIT)
    assert (await socket.answer())["size"] == LIMIT
    message: Any = "x" * (LIMIT + 1) if kind == "text" else b"x" * (LIMIT + 1)
    await socket.send(message)
    assert await socket.closes() == 1009


async def test_nothing_is_kept_of_a_message_that_is_too_big(open_plain, site, alice):
    from delivery.models import Payload

    socket = await open_plain(alice)
    for number in range(17):  # fragmented, 1 MiB each
        opcode = ABNF.OPCODE_CONT if number else ABNF.OPCODE_BINARY
        await socket.send_frame(opcode, b"x" * 1_048_577, fin=number == 16)
    assert await socket.closes() == 1009
    assert not await site.run(Payload.objects.filter(owner_id=alice.pk).exists)


# -- addresses -----------------------------------------------------------------------------------------------------


async def test_to_names_the_recipients(open_plain, site, alice, bob):
    carol = await site.person("plain-readers")
    query = f"?to={bob.address}&to=group:plain-readers&to={bob.address}"
    socket = await open_plain(alice, query)
    await socket.send("for you")
    told = await socket.answer()
    row = await site.payload(told["payload"])
    users = await site.run(lambda: set(row.deliveries.values_list("user_id", flat=True)))
    assert users == {bob.pk, carol.pk}
    assert row.expires_at is not None


@pytest.mark.parametrize("query", ["?to=user:999999999", "?to=nobody", "?to=", "?to=user:1&to=", "?to=%ff"])
async def test_an_address_that_names_nobody_is_forbidden(open_plain, site, alice, query):
    socket = await open_plain(alice, query)
    for _ in range(2):
        await socket.send("for whom?")
        told = await socket.answer()
        assert (told["type"], told["code"]) == ("failed", "forbidden")


# -- logins --------------------------------------------------------------------------------------------------------


async def test_without_a_login_the_server_wants_a_hello(open_plain, site):
    """A token may still come in one, since some clients can set no header; a payload is not taken for it."""
    socket = await open_plain(None, suppress_origin=True)
    await socket.send(b"payload")
    assert await socket.closes() in (1003, 4401)


async def test_a_wrong_token_is_refused_with_4401(open_plain, site, alice):
    wrong = Person(alice.pk, alice.token[:-1] + ("a" if alice.token[-1] != "a" else "b"))
    socket = await open_plain(wrong)
    assert await socket.closes() == 4401


async def test_a_login_that_ends_closes_the_socket(open_plain, site, alice):
    from django.contrib.auth.models import User

    socket = await open_plain(alice)
    await site.run(lambda: User.objects.filter(pk=alice.pk).update(is_active=False))
    assert await socket.closes() == 4401


# -- peers that come and go ----------------------------------------------------------------------------------------


async def test_what_came_whole_is_stored_although_its_sender_has_gone(open_plain, site, alice):
    from delivery.models import Payload

    socket = await open_plain(alice)
    await socket.send(b"x" * 5_000_000)
    socket.socket.close(timeout=0)

    def stored() -> bool:
        return Payload.objects.filter(owner_id=alice.pk, state="complete", size=5_000_000).exists()

    await site.until(stored, what="payload")


def wsdump(stack: Stack, who: Person, query: str, lines: str) -> list[dict[str, Any]]:
    """Type `lines` into a terminal client; return what it shows."""
    command = [sys.executable, "-m", "websocket._wsdump", "--raw", "--eof-wait", "3"]
    command += ["--headers", f"Authorization: Bearer {who.token}", stack.ws_url + query]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=30, check=False)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


async def test_a_terminal_client_sends_lines(shipped, site, alice, bob):
    shown = await asyncio.to_thread(wsdump, shipped, alice, f"?to={bob.address}", "first line\nzweite Zeile: ü\n")
    assert [told["type"] for told in shown] == ["stored", "stored"]
    contents = [await site.content(told["payload"]) for told in shown]
    assert contents == [b"first line", "zweite Zeile: ü".encode()]
