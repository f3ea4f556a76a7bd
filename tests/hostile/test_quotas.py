"""Quotas, rates, connections: exactly as much as the policy allows, and given back whatever way a payload ends."""

from __future__ import annotations

import asyncio
import struct
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import crc32c
import pytest
from django.utils import timezone

from delivery.models import Payload, Transfer, Usage
from delivery.transfers import admission, cleanup, outcomes, quotas
from tests.conformance.peer import Peer
from tests.hostile import policy
from tests.hostile.conftest import Open, Target
from tests.hostile.wire import BINARY, Wire, frame
from tests.stack import Person, Site

CHUNK = 65_536
SIZE = 100_000  # more than goes inline
DATA = bytes(SIZE)
ROWS = admission.overhead("n", {})  # bytes that `offer` is charged with for its name and its rows


@pytest.fixture
async def usage(site: Site) -> Callable[[Person], Awaitable[tuple[int, int]]]:
    """Return a function that says what a person is charged with: bytes, uploads. A count anew must say the same."""

    async def usage(person: Person) -> tuple[int, int]:
        def look() -> tuple[int, int]:
            kept = Usage.objects.get(user=person.pk)
            Usage.objects.filter(user=person.pk).update(counted_at=timezone.now() - 2 * quotas.COUNT_AGAIN)
            quotas.count_again()
            anew = Usage.objects.get(user=person.pk)
            assert (kept.stored, kept.live) == (anew.stored, anew.live)
            return kept.stored, kept.live

        return await site.run(look)

    return usage


async def offer(wire: Wire, handle: int, *, size: int | None = SIZE, transfer: str | None = None, **more: Any) -> str:
    transfer = transfer or str(uuid.uuid4())
    await wire.say("offer", transfer=transfer, handle=handle, name="n", size=size, chunk_size=CHUNK, **more)
    return transfer


async def answer(wire: Wire, handle: int) -> dict[str, Any]:
    """Return the accept, reject or done of an offer."""
    return await wire.answer(handle, seconds=60)


async def send(wire: Wire, handle: int, data: bytes = DATA, *, first: int = 0, finish: bool = True) -> None:
    for seq in range(first, -(-len(data) // CHUNK)):
        piece = data[seq * CHUNK : (seq + 1) * CHUNK]
        await wire.send(frame(BINARY, struct.pack(">III", handle, seq, crc32c.crc32c(piece)) + piece))
    if finish:
        await wire.say("finish", handle=handle, chunks=-(-len(data) // CHUNK), size=len(data))


async def offer_in_parallel(open_wire: Open, person: Person, count: int, size: int) -> list[str]:
    """Offer `count` payloads over five sockets at once; return the answers' types or reject codes."""
    wires = [await open_wire(person) for _ in range(5)]

    async def offer_some(wire: Wire) -> list[dict[str, Any]]:
        handles = range(1, count // 5 + 1)
        await asyncio.gather(*(offer(wire, handle, size=size) for handle in handles))
        return [await answer(wire, handle) for handle in handles]

    answers = [one for some in await asyncio.gather(*map(offer_some, wires)) for one in some]
    return [one.get("code", one["type"]) for one in answers]


@pytest.mark.parametrize("size", [100_000, 50_000], ids=["through Redis", "inline"])
@pytest.mark.usefixtures("unharmed")
async def test_50_parallel_offers_at_the_edge_of_the_bytes(open_wire: Open, site: Site, usage: Any, size: int) -> None:
    person = await site.person("tight-bytes")
    said = await offer_in_parallel(open_wire, person, 50, size)
    most = policy.BYTES.stored // (size + ROWS)
    assert sorted(said) == ["accept"] * most + ["quota"] * (50 - most)
    assert (await usage(person))[0] == most * (size + ROWS)


@pytest.mark.usefixtures("unharmed")
async def test_50_parallel_offers_at_the_edge_of_the_uploads(open_wire: Open, site: Site, usage: Any) -> None:
    person = await site.person("tight-uploads")
    said = await offer_in_parallel(open_wire, person, 50, SIZE)
    assert sorted(said) == ["accept"] * policy.UPLOADS.live + ["quota"] * (50 - policy.UPLOADS.live)
    assert await usage(person) == (policy.UPLOADS.live * (SIZE + ROWS), policy.UPLOADS.live)


async def test_small_ones_that_come_whole_stop_at_the_edge_too(open_wire: Open, site: Site, usage: Any) -> None:
    person = await site.person("tight-bytes")
    wire = await open_wire(person)
    data = bytes(60_000)
    codes = []
    for handle in range(1, 20):
        await offer(wire, handle, size=len(data))
        await send(wire, handle, data)
        first = await answer(wire, handle)
        codes.append(first.get("code", "done"))
        if codes[-1] == "done" and first["type"] == "accept":
            assert (await answer(wire, handle))["type"] == "done"
    most = policy.BYTES.stored // (len(data) + ROWS)
    assert codes == ["done"] * most + ["quota"] * (19 - most)
    assert await usage(person) == (most * (len(data) + ROWS), 0)


async def test_what_is_complete_stays_charged_until_it_is_gone(open_wire: Open, site: Site, usage: Any) -> None:
    person = await site.person("tight-bytes")
    wire = await open_wire(person)
    await offer(wire, 1)
    assert (await answer(wire, 1))["type"] == "accept"
    assert await usage(person) == (SIZE + ROWS, 1)
    await send(wire, 1)
    payload = (await answer(wire, 1))["payload"]
    assert await usage(person) == (SIZE + ROWS, 0)
    await site.run(lambda: Payload.objects.get(pk=payload).discard())
    assert await usage(person) == (0, 0)


async def _cancelled_by_the_sender(wire: Wire, transfer: str, payload: Payload, site: Site) -> None:
    await wire.say("abort", transfer=transfer, handle=1, code="cancelled", final=True)


async def _cancelled_by_the_site(wire: Wire, transfer: str, payload: Payload, site: Site) -> None:
    await site.run(outcomes.cancel_payload, payload.pk, by="")


async def _expired(wire: Wire, transfer: str, payload: Payload, site: Site) -> None:
    def expire() -> None:
        Transfer.objects.filter(payload=payload).update(expires_at=timezone.now())
        cleanup.sweep()

    await site.run(expire)


async def _failed(wire: Wire, transfer: str, payload: Payload, site: Site) -> None:
    await site.run(outcomes.fail, payload.pk, "digest")


async def _of_another_digest(wire: Wire, transfer: str, payload: Payload, site: Site) -> None:
    await send(wire, 1, finish=False)
    await wire.say("finish", handle=1, chunks=2, size=SIZE, sha256="0" * 64)
    assert (await wire.hear("abort", handle=1))["code"] == "digest"


ENDS = [_cancelled_by_the_sender, _cancelled_by_the_site, _expired, _failed, _of_another_digest]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__.strip("_"))
@pytest.mark.parametrize("size", [SIZE, 1000], ids=["through Redis", "inline"])
async def test_every_end_gives_back_what_was_reserved(
    open_wire: Open, site: Site, usage: Any, end: Any, size: int
) -> None:
    if end is _of_another_digest and size != SIZE:
        pytest.skip("tests/conformance/test_early_data.py has it")
    person = await site.person("tight-bytes")
    wire = await open_wire(person)
    transfer = await offer(wire, 1, size=size)
    assert (await answer(wire, 1))["type"] == "accept"
    payload = (await site.upload_row(transfer)).payload
    assert (await usage(person))[0] == size + ROWS
    await end(wire, transfer, payload, site)
    await site.until(lambda: not Transfer.objects.filter(payload=payload, state="live").exists(), what="end")
    assert await usage(person) == (0, 0)
    await offer(wire, 2, size=policy.BYTES.stored - ROWS)  # all of it is free again
    assert (await answer(wire, 2))["type"] == "accept"


async def test_an_unknown_size_is_charged_as_it_grows_and_right_in_the_end(
    open_wire: Open, site: Site, usage: Any
) -> None:
    person = await site.person("tight-bytes")
    wire = await open_wire(person)
    transfer = await offer(wire, 1, size=None)
    await answer(wire, 1)
    await send(wire, 1, bytes(3 * CHUNK), finish=False)
    await wire.hear("ack", handle=1, seq=3)
    assert await usage(person) == (3 * CHUNK + ROWS, 1)
    await wire.end()  # and resumed: what is stored is not charged twice
    wire = await open_wire(person)
    await offer(wire, 1, size=None, transfer=transfer)
    seq = (await answer(wire, 1))["seq"]
    await send(wire, 1, bytes(5 * CHUNK), first=seq)
    assert (await answer(wire, 1))["type"] == "done"
    assert await usage(person) == (5 * CHUNK + ROWS, 0)


async def test_an_unknown_size_that_outgrows_the_quota_ends(open_wire: Open, site: Site, usage: Any) -> None:
    person = await site.person("tight-bytes")
    wire = await open_wire(person)
    await offer(wire, 1, size=None)
    await answer(wire, 1)
    await send(wire, 1, bytes(20 * CHUNK), finish=False)
    assert (await wire.hear("abort", handle=1))["code"] == "too_large"
    assert await usage(person) == (0, 0)


async def test_the_edge_does_not_keep_anybody_from_resuming(open_wire: Open, site: Site, usage: Any) -> None:
    person = await site.person("tight-uploads")
    first = await open_wire(person)
    transfers = [await offer(first, handle) for handle in range(1, policy.UPLOADS.live + 1)]
    for handle in range(1, policy.UPLOADS.live + 1):
        assert (await answer(first, handle))["type"] == "accept"
    await first.end()
    second = await open_wire(person)
    for handle, transfer in enumerate(transfers, 1):
        await offer(second, handle, transfer=transfer)
        assert (await answer(second, handle))["type"] == "accept"
        await send(second, handle)
        assert (await answer(second, handle))["type"] == "done"
    assert await usage(person) == (policy.UPLOADS.live * (SIZE + ROWS), 0)


async def test_more_offers_a_minute_than_allowed_get_rate(open_wire: Open, site: Site) -> None:
    person, other = await site.person("tight-offers"), await site.person()
    wire = await open_wire(person)
    answers = []
    for handle in range(1, 26):
        await offer(wire, handle, size=0)
        answers.append(await answer(wire, handle))
    codes = [one.get("code", one["type"]) for one in answers]
    allowed = policy.OFFERS.offers_per_minute
    assert codes == ["accept"] * allowed + ["rate"] * (25 - allowed)
    assert 0 < answers[-1]["retry_after"] <= 60
    second = await open_wire(person)  # another socket of theirs changes nothing
    await offer(second, 1, size=0)
    assert (await answer(second, 1))["code"] == "rate"
    wire = await open_wire(other)
    await offer(wire, 1, size=0)
    assert (await answer(wire, 1))["type"] == "accept"


async def test_more_connections_than_allowed_close_4429(open_wire: Open, site: Site) -> None:
    person = await site.person("tight-connections")
    held = [await open_wire(person) for _ in range(policy.CONNECTIONS.connections)]
    one_more = await open_wire(person, hello=False)
    await one_more.say("hello", client="c", max_message=65_548)
    assert (await one_more.hear("going_away"))["reason"] == "rate"
    assert (await one_more.closes())[0] == 4429
    for wire in held:
        await wire.settle()


async def test_sockets_that_are_gone_do_not_count(open_wire: Open, site: Site) -> None:
    person = await site.person("tight-connections")
    for _ in range(3):
        held = [await open_wire(person) for _ in range(policy.CONNECTIONS.connections)]
        await offer(held[0], 1)
        await answer(held[0], 1)
        for wire in held:
            await wire.end()
        await asyncio.sleep(0.2)


async def test_plain_sockets_count_and_their_messages_are_offers(target: Target, site: Site, wires: Any) -> None:
    async def plain(person: Person) -> Peer:
        opening = Peer.open(target.ws_url, token=person.token, subprotocols=None)
        peer: Peer = await wires.enter_async_context(opening)
        return peer

    person = await site.person("tight-connections")
    for _ in range(policy.CONNECTIONS.connections):
        held = await plain(person)
        await held.say_text("x")
        await held.hear("stored")  # it counts by now
    assert (await (await plain(person)).closes())[0] == 4429
    await held.say_text("x")
    await held.hear("stored")
    peer = await plain(await site.person("tight-offers"))
    for _ in range(policy.OFFERS.offers_per_minute):
        await peer.say_text("x")
        await peer.hear("stored")
    await peer.say_text("x")
    assert (await peer.hear("failed"))["code"] == "rate"


async def test_what_was_stored_twice_is_charged_once_in_the_end(open_wire: Open, site: Site, usage: Any) -> None:
    person = await site.person("tight-bytes")
    wire = await open_wire(person)
    transfer = await offer(wire, 1, size=None)
    await answer(wire, 1)
    await send(wire, 1, bytes(2 * CHUNK), finish=False)
    await wire.hear("ack", handle=1, seq=2)
    payload = (await site.upload_row(transfer)).payload

    def charge_again() -> None:  # as a segment beyond a gap, dropped when the upload resumed
        assert quotas.grow(Payload.objects.get(pk=payload.pk), policy.BYTES.stored, CHUNK)

    await site.run(charge_again)
    await wire.say("finish", handle=1, chunks=2, size=2 * CHUNK)
    assert (await answer(wire, 1))["type"] == "done"
    assert await usage(person) == (2 * CHUNK + ROWS, 0)
