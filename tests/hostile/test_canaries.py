"""Close reasons, logs and events never hold payload bytes, tokens or cookies, whatever goes wrong and however much is logged."""

from __future__ import annotations

import asyncio
import json
import struct
import uuid
from collections.abc import Iterator

import crc32c
import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client as Browser

from delivery import deliver
from delivery.models import Event, Payload
from tests.conformance.peer import Peer
from tests.hostile.conftest import Open, Target
from tests.hostile.wire import BINARY, TEXT, Wire, frame
from tests.stack import Person, Site, WebProcess

CANARY = "tweet-4f1c"
DATA = (CANARY.encode() + b" ") * 20_000  # 220 kB
CHUNK = 65_536


@pytest.fixture(scope="module")
def talkative(target: Target) -> Iterator[WebProcess]:
    process = WebProcess(target.stack, "tests.hostile.talkative")
    try:
        yield process
    finally:
        process.stop()


def chunk(handle: int, seq: int, data: bytes, crc: int | None = None) -> bytes:
    return frame(BINARY, struct.pack(">III", handle, seq, crc32c.crc32c(data) if crc is None else crc) + data)


async def offer(wire: Wire, handle: int, size: int, **more: object) -> None:
    usual = {"name": CANARY, "meta": {CANARY: CANARY}, "chunk_size": CHUNK}
    await wire.say("offer", transfer=str(uuid.uuid4()), handle=handle, size=size, **usual, **more)


async def go_wrong_in_every_way(open_wire: Open, person: Person, port: int) -> list[str]:
    """Have sockets closed for all kinds of reasons; return what the server gave as reasons and messages."""
    wrong = [
        frame(TEXT, json.dumps({"type": CANARY}).encode()),
        frame(TEXT, json.dumps({"type": "ping", "id": CANARY}).encode()),
        frame(TEXT, CANARY.encode()),
        frame(TEXT, CANARY.encode() + b"\xff"),
        frame(TEXT, b'{"' + CANARY.encode() + b'": 1, "' + CANARY.encode() + b'": 2}'),
        frame(TEXT, CANARY.encode() * 7000),
        frame(BINARY, CANARY.encode()),
        frame(BINARY, CANARY.encode() * 200_000),
        frame(TEXT, CANARY.encode(), rsv=7),
        frame(TEXT, CANARY.encode(), masked=False),
    ]
    reasons = []
    for data in wrong:
        wire = await open_wire(person, port=port)
        await wire.send(data)
        reasons.append((await wire.closes())[1])
    for data in (chunk(1, 0, DATA[:100]), chunk(1, 7, DATA[:CHUNK]), chunk(1, 0, DATA[:CHUNK], crc=1)):
        wire = await open_wire(person, port=port)
        await offer(wire, 1, len(DATA))
        await wire.hear("accept")
        await wire.send(data)
        await asyncio.sleep(0.1)
        reasons.append(str(wire.close) + json.dumps([message for message in wire.heard if isinstance(message, dict)]))
    return reasons


async def logins_that_fail(open_wire: Open, port: int) -> list[str]:
    reasons = []
    origin = f"http://127.0.0.1:{port}"
    for headers in (
        {"Authorization": f"Bearer {CANARY}"},
        {"Authorization": f"Basic {CANARY}"},
        {"Origin": origin, "Cookie": f"{settings.SESSION_COOKIE_NAME}={CANARY}; {CANARY}={CANARY}"},
    ):
        wire = await open_wire(None, hello=False, port=port, headers=headers)
        await wire.say("hello", client=CANARY, max_message=65_548, token=CANARY)
        reasons.append((await wire.closes())[1])
    return reasons


async def transfers_that_succeed(open_wire: Open, site: Site, person: Person, port: int) -> None:
    wire = await open_wire(person, port=port)
    for handle, data in enumerate((DATA[:100], DATA), 1):
        await offer(wire, handle, len(data), to=[person.address])
        await wire.hear("accept", handle=handle)
        for seq in range(-(-len(data) // CHUNK)):
            await wire.send(chunk(handle, seq, data[seq * CHUNK : (seq + 1) * CHUNK]))
        await wire.say("finish", handle=handle, chunks=-(-len(data) // CHUNK), size=len(data))
        await wire.hear("done", handle=handle)
    receiver = await open_wire(person, port=port, hello=False)
    await receiver.hello(receive=True, early_data=100_000)
    for _ in range(2):
        found = await receiver.hear("offer")
        answer = {"transfer": found["transfer"], "handle": found["handle"], "chunk_size": found["chunk_size"]}
        await receiver.say("accept", **answer, seq=0, limit=10)
        await receiver.hear("finish", handle=found["handle"])
        await receiver.say("done", **answer, size=found["size"], sha256=found["sha256"])
    await site.run(lambda: deliver(DATA, to=User.objects.get(pk=person.pk), name=CANARY))
    await receiver.hear("offer")


async def test_no_canary_is_seen_again(open_wire: Open, site: Site, target: Target, talkative: WebProcess) -> None:
    person = await site.person()

    def log_in() -> str:
        browser = Browser()
        browser.force_login(User.objects.get(pk=person.pk))
        return str(browser.cookies[settings.SESSION_COOKIE_NAME].value)

    cookie = await site.run(log_in)
    headers = {
        "Origin": f"http://127.0.0.1:{talkative.port}",
        "Cookie": f"{settings.SESSION_COOKIE_NAME}={cookie}",
    }
    browser = await open_wire(None, hello=False, port=talkative.port, headers=headers)
    await browser.hello()
    said = await go_wrong_in_every_way(open_wire, person, talkative.port)
    said += await logins_that_fail(open_wire, talkative.port)
    await transfers_that_succeed(open_wire, site, person, talkative.port)
    async with Peer.open(talkative.ws_url, token=person.token, subprotocols=None) as plain:
        await plain.say_text(CANARY * 10_000)
        await plain.hear("stored", seconds=30)
        await plain.say_bytes(DATA * 100)  # more than plain mode takes
        said.append((await plain.closes())[1])
    await asyncio.sleep(1.5)  # for the events to be written

    def events() -> str:
        mine = Payload.objects.filter(owner=person.pk).values("pk")
        found = list(Event.objects.filter(payload__in=mine).values_list("kind", "detail"))
        assert found
        return json.dumps(found)

    log = talkative.log()
    assert "DEBUG" in log
    for secret in (CANARY, CANARY.encode().hex(), person.token, cookie):
        assert secret not in json.dumps(said)
        assert secret not in log
        assert secret not in target.log()
        assert secret not in await site.run(events)
