"""Too much of what is allowed one by one, too slowly, or never read: bounded, and nobody else is kept waiting."""

from __future__ import annotations

import asyncio
import os
import struct
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from delivery import deliver
from delivery.models import Payload
from tests.hostile.conftest import MIB, Open, Target
from tests.hostile.settings import MOST_LIVE
from tests.hostile.wire import BINARY, CONT, PING, PONG, TEXT, Wire, frame, said
from tests.quick_settings import HEARTBEAT_SECONDS
from tests.stack import Person, Site, WebProcess

pytestmark = pytest.mark.usefixtures("unharmed")
FLOOD_SECONDS = 1.0
PEAK_BYTES = 48 * MIB
ONE_BYTE_TRANSFERS = int(os.environ.get("DELIVERY_ONE_BYTE_TRANSFERS", "1000"))  # 10,000 for the full row
SILENT_SOCKETS = 500


def offer(handle: int, *, size: int = 100_000, transfer: str | None = None, **members: Any) -> bytes:
    transfer = transfer or str(uuid.uuid4())
    return said("offer", transfer=transfer, handle=handle, name="n", size=size, chunk_size=65_536, **members)


def abort(handle: int, transfer: str, *, final: bool) -> bytes:
    return said("abort", transfer=transfer, handle=handle, code="cancelled", final=final)


async def flood(wire: Wire, make: Callable[[int], bytes], *, at_once: int = 100) -> int:
    """Send what `make` gives for 1, 2, 3, ... as fast as the server takes it, for a while; return how many it took."""
    loop = asyncio.get_running_loop()
    until = loop.time() + FLOOD_SECONDS
    count = 0
    while loop.time() < until:
        sending = wire.send(b"".join(make(number) for number in range(count + 1, count + at_once + 1)))
        try:
            if not await asyncio.wait_for(sending, until - loop.time()):
                break
        except TimeoutError:
            break
        count += at_once
    return count


async def peak_of(target: Target, work: Any) -> tuple[Any, int]:
    """Await `work`; return its result and the most memory that the server had meanwhile beyond what it had before."""
    before = peak = target.rss()
    task = asyncio.ensure_future(work)
    while not task.done():
        peak = max(peak, target.rss())
        await asyncio.wait({task}, timeout=0.02)
    return task.result(), peak - before


# -- frames that never become a message --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1], ids=["empty", "one byte"])
async def test_a_hundred_thousand_fragments_without_an_end_close_1008(
    open_wire: Open, target: Target, mallory: Person, size: int
) -> None:
    wire = await open_wire(mallory)
    await wire.send(frame(BINARY, b"", fin=False))
    fragment = frame(CONT, bytes(size), fin=False)
    _, grown = await peak_of(target, flood(wire, lambda _: fragment, at_once=1000))
    assert (await wire.closes())[0] == 1008
    assert grown < PEAK_BYTES


async def test_the_same_before_hello_and_without_login(open_wire: Open, target: Target) -> None:
    wire = await open_wire(None, hello=False)
    await wire.send(frame(TEXT, b"", fin=False))
    fragment = frame(CONT, b"x", fin=False)
    _, grown = await peak_of(target, flood(wire, lambda _: fragment, at_once=1000))
    assert (await wire.closes())[0] == 1008
    assert grown < PEAK_BYTES


async def test_sixteen_thousand_fragments_are_a_message(open_wire: Open, mallory: Person) -> None:
    wire = await open_wire(mallory)
    text = b'{"type": "ping", "id": 5, "pad": "' + b"x" * 16_000 + b'"}'
    pieces = [frame(CONT, text[at : at + 1], fin=at == len(text) - 1) for at in range(1, len(text))]
    await wire.send(frame(TEXT, text[:1], fin=False) + b"".join(pieces))
    await wire.hear("pong", id=5)


@pytest.mark.parametrize("reads", [True, False], ids=["read", "not read"])
@pytest.mark.parametrize("opcode", [PING, PONG], ids=["pings", "pongs"])
async def test_a_flood_of_control_frames_closes_1008(
    open_wire: Open, target: Target, mallory: Person, opcode: int, *, reads: bool
) -> None:
    wire = await open_wire(mallory, hello=False, reads=reads)
    one = frame(opcode, bytes(125))
    _, grown = await peak_of(target, flood(wire, lambda _: one, at_once=500))
    if not reads:
        wire.read()
    assert (await wire.closes())[0] in (1008, 1006)  # 1006: TCP's reset took the frame along
    assert grown < PEAK_BYTES


async def test_a_request_head_without_an_end_gets_400(target: Target) -> None:
    async def send() -> None:
        async with Wire.bare(target.port) as wire:
            await wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n")
            sent = await flood(wire, lambda number: b"x%d: %s\r\n" % (number, b"y" * 100))
            assert sent * 100 < 16 * MIB

    _, grown = await peak_of(target, send())
    assert grown < PEAK_BYTES


# -- messages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", [True, False], ids=["read", "not read"])
async def test_a_flood_of_pings_is_answered_as_fast_as_it_is_read(
    open_wire: Open, target: Target, mallory: Person, *, reads: bool
) -> None:
    wire = await open_wire(mallory, hello=False, reads=reads)
    await wire.send(said("hello", client="c", max_message=65_548))
    _, grown = await peak_of(target, flood(wire, lambda number: said("ping", id=number)))
    assert grown < PEAK_BYTES


@pytest.mark.parametrize("final", [True, False], ids=["final", "not final"])
async def test_offers_that_are_taken_back_at_once(
    open_wire: Open, target: Target, mallory: Person, *, final: bool
) -> None:
    def make(number: int) -> bytes:
        transfer = str(uuid.uuid4())
        return offer(number, transfer=transfer) + abort(number, transfer, final=final)

    wire = await open_wire(mallory)
    _, grown = await peak_of(target, flood(wire, make))
    assert grown < PEAK_BYTES


async def test_rejects_that_nobody_reads(open_wire: Open, target: Target, mallory: Person) -> None:
    wire = await open_wire(mallory, hello=False, reads=False)
    await wire.send(said("hello", client="c", max_message=65_548))

    async def send() -> None:
        for number in range(1, 1000):
            await wire.send(offer(number, size=2**52))
            await asyncio.sleep(0.001)

    _, grown = await peak_of(target, send())
    assert grown < PEAK_BYTES


async def test_more_than_16_unanswered_offers_close_4429(open_wire: Open, mallory: Person) -> None:
    wire = await open_wire(mallory)
    await wire.send(b"".join(offer(number) for number in range(1, 200)))
    assert (await wire.closes())[0] == 4429
    assert (await wire.hear("going_away"))["reason"] == "rate"


async def test_live_transfers_of_a_connection_are_bounded(open_wire: Open, mallory: Person) -> None:
    wire = await open_wire(mallory)
    for number in range(1, MOST_LIVE + 1):
        await wire.send(offer(number, size=100))
        await wire.hear("accept", handle=number)
    await wire.send(offer(MOST_LIVE + 1, size=100))
    refused = await wire.hear("reject", handle=MOST_LIVE + 1)
    assert refused["code"] == "busy"
    assert refused["retry_after"] > 0


async def test_an_offer_to_thousands_is_refused_without_looking_them_up(open_wire: Open, mallory: Person) -> None:
    wire = await open_wire(mallory)
    await wire.send(offer(1, to=["group:x"] * 1001))
    assert (await wire.hear("reject", handle=1))["code"] == "forbidden"


async def test_a_hello_to_thousands_of_groups(open_wire: Open, mallory: Person) -> None:
    wire = await open_wire(mallory, hello=False)
    welcome = await wire.hello(groups=[f"g{number}" for number in range(7000)])
    assert welcome["groups"] == []


async def test_thousands_of_transfers_of_one_byte(open_wire: Open, site: Site, mallory: Person) -> None:
    wire = await open_wire(mallory)
    crc = 0x527D5351  # CRC-32C of b"\0"
    at_once = 16

    def one(handle: int) -> bytes:
        chunk = frame(BINARY, struct.pack(">III", handle, 0, crc) + b"\0")
        return offer(handle, size=1) + chunk + said("finish", handle=handle, chunks=1, size=1)

    for first in range(1, ONE_BYTE_TRANSFERS, at_once):
        await wire.send(b"".join(one(handle) for handle in range(first, first + at_once)))
        for handle in range(first, first + at_once):
            await wire.hear("done", handle=handle)
        wire.heard.clear()
    stored = await site.run(Payload.objects.filter(owner=mallory.pk, state="complete").count)
    assert stored >= ONE_BYTE_TRANSFERS


# -- too slowly --------------------------------------------------------------------------------------------------------


async def test_500_sockets_that_never_say_hello_are_closed_4408(target: Target) -> None:
    async def silent() -> tuple[int, str]:
        async with Wire.open(target.port) as wire:
            return await wire.closes(seconds=30)

    ends, grown = await peak_of(target, asyncio.gather(*(silent() for _ in range(SILENT_SOCKETS))))
    assert {code for code, _ in ends} == {4408}
    assert grown < PEAK_BYTES


async def test_a_sender_of_a_few_bytes_a_heartbeat_is_dropped(
    open_wire: Open, impatient: WebProcess, mallory: Person
) -> None:
    wire = await open_wire(mallory, port=impatient.port)
    wire.answers = False
    message = said("ping", id=1)
    for byte in message:
        if not await wire.send(bytes([byte])):
            break
        await asyncio.sleep(HEARTBEAT_SECONDS / 5)
    assert await wire.closes() == (1011, "no answer")


# -- recipients --------------------------------------------------------------------------------------------------------


async def test_a_recipient_that_never_acks_gets_its_window_and_no_more(
    open_wire: Open, target: Target, site: Site, mallory: Person
) -> None:
    await site.run(_deliver, mallory.pk, 8 * MIB)
    wire = await open_wire(mallory, hello=False)
    await wire.hello(receive=True)
    found = await wire.hear("offer")
    answer = {"transfer": found["transfer"], "handle": found["handle"], "chunk_size": found["chunk_size"]}
    await wire.say("accept", **answer, seq=0, limit=4)
    await asyncio.sleep(1)
    assert sum(isinstance(message, bytes) for message in wire.heard) == 4


async def test_a_recipient_that_never_reads_is_given_up(
    open_wire: Open, impatient: WebProcess, target: Target, site: Site, mallory: Person
) -> None:
    payload = await site.run(_deliver, mallory.pk, 64 * MIB)
    wire = await open_wire(mallory, hello=False, port=impatient.port)
    await wire.hello(receive=True)
    found = await wire.hear("offer")
    await wire.stop_reading()
    answer = {"transfer": found["transfer"], "handle": found["handle"], "chunk_size": found["chunk_size"]}
    await wire.say("accept", **answer, seq=0, limit=1000)

    def detached() -> bool:
        return not payload.deliveries.exclude(clients__channel="").exists()

    await site.until(detached, what="detached delivery")
    await site.run(payload.discard)


def _deliver(user: int, size: int) -> Payload:
    from django.contrib.auth.models import User

    return deliver(bytes(size), to=User.objects.get(pk=user))
