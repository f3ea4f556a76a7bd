"""One admission for every way in: whatever a peer says first and later, no limit is passed, and every byte is charged."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from django.contrib.auth.models import Group, User

from delivery.models import Payload, Usage
from delivery.transfers import admission
from tests.conformance.peer import Peer
from tests.hostile import policy
from tests.hostile.conftest import Open, Target
from tests.hostile.test_quotas import CHUNK, SIZE, answer, offer, send, usage
from tests.hostile.wire import Wire
from tests.stack import Person, Site

__all__ = ["usage"]  # a fixture

BYTES = policy.BYTES.stored
ROWS = admission.overhead("n", {})  # that `offer` is charged with for its name and its rows


async def grown(wire: Wire, chunks: int, handle: int = 1) -> str:
    """Offer an upload of unknown size and have some of it stored; return the transfer."""
    transfer = await offer(wire, handle, size=None)
    assert (await answer(wire, handle))["type"] == "accept"
    await send(wire, handle, bytes(chunks * CHUNK), finish=False)
    await wire.hear("ack", handle=handle, seq=chunks)
    return transfer


def join(pk: int, *names: str) -> None:
    User.objects.get(pk=pk).groups.add(*(Group.objects.get_or_create(name=name)[0] for name in names))


@pytest.mark.usefixtures("unharmed")
async def test_a_size_that_is_told_later_is_held_to_the_policys_limit(open_wire: Open, site: Site, usage: Any) -> None:
    wire = await open_wire(await site.person(policy.TIGHT_SIZE))
    transfer = await grown(wire, 1)
    await offer(wire, 2, size=policy.LARGEST + 1, transfer=transfer)
    refused = await answer(wire, 2)
    assert (refused["code"], refused["max_size"]) == ("too_large", policy.LARGEST)
    await offer(wire, 3, size=policy.LARGEST, transfer=transfer)
    assert (await answer(wire, 3))["type"] == "accept"


@pytest.mark.usefixtures("unharmed")
async def test_a_size_that_is_told_later_is_charged(open_wire: Open, site: Site, usage: Any) -> None:
    person = await site.person("tight-bytes")
    wire = await open_wire(person)
    transfer = await grown(wire, 2)
    assert await usage(person) == (2 * CHUNK + ROWS, 1)
    await offer(wire, 2, size=BYTES, transfer=transfer)
    assert (await answer(wire, 2))["code"] == "quota"
    assert await usage(person) == (2 * CHUNK + ROWS, 1)  # a rejected offer changes nothing
    await offer(wire, 3, size=BYTES - ROWS, transfer=transfer)  # to the very byte
    seq = (await answer(wire, 3))["seq"]
    assert await usage(person) == (BYTES, 1)
    await send(wire, 3, bytes(BYTES - ROWS), first=seq)
    assert (await answer(wire, 3))["type"] == "done"
    assert await usage(person) == (BYTES, 0)


@pytest.mark.usefixtures("unharmed")
async def test_an_unknown_size_ends_at_the_policys_limit(open_wire: Open, site: Site, usage: Any) -> None:
    person = await site.person(policy.TIGHT_SIZE)
    wire = await open_wire(person)
    await offer(wire, 1, size=None)
    await answer(wire, 1)
    await send(wire, 1, bytes(policy.LARGEST + CHUNK), finish=False)
    ended = await wire.hear("abort", handle=1)
    assert (ended["code"], ended["final"]) == ("too_large", True)
    await site.until(lambda: Usage.objects.get(user=person.pk).stored == 0, what="end of the charge")
    assert await usage(person) == (0, 0)


@pytest.mark.usefixtures("unharmed")
async def test_an_unknown_size_may_grow_to_the_last_byte_of_the_quota(open_wire: Open, site: Site, usage: Any) -> None:
    person = await site.person("tight-bytes")
    wire = await open_wire(person)
    await offer(wire, 1, size=None)
    await answer(wire, 1)
    await send(wire, 1, bytes(BYTES - ROWS))
    assert (await answer(wire, 1))["type"] == "done"
    assert await usage(person) == (BYTES, 0)
    await offer(wire, 2, size=0)
    assert (await answer(wire, 2))["code"] == "quota"


@pytest.mark.usefixtures("unharmed")
async def test_an_unknown_size_ends_one_byte_past_the_quota(open_wire: Open, site: Site, usage: Any) -> None:
    person = await site.person("tight-bytes")
    wire = await open_wire(person)
    await offer(wire, 1, size=None)
    await answer(wire, 1)
    await send(wire, 1, bytes(BYTES - ROWS + 1))
    ended = await wire.hear("abort", handle=1)
    assert (ended["code"], ended["final"]) == ("too_large", True)
    assert await usage(person) == (0, 0)


@pytest.mark.usefixtures("unharmed")
async def test_sizes_that_are_told_in_parallel_do_not_pass_together(open_wire: Open, site: Site, usage: Any) -> None:
    person = await site.person("tight-bytes")
    wires = [await open_wire(person) for _ in range(5)]
    transfers = [await grown(wire, 1) for wire in wires]
    size = BYTES // 3
    for wire, transfer in zip(wires, transfers, strict=True):
        await offer(wire, 2, size=size, transfer=transfer)
    answers = [await answer(wire, 2) for wire in wires]
    codes = [one.get("code", one["type"]) for one in answers]
    assert sorted(codes) == ["accept"] * 2 + ["quota"] * 3
    assert (await usage(person))[0] == 2 * (size + ROWS) + 3 * (CHUNK + ROWS)


async def test_a_policy_that_changed_its_mind_is_heard_at_the_next_offer(
    open_wire: Open, site: Site, usage: Any
) -> None:
    person = await site.person()
    wire = await open_wire(person)
    transfer = await grown(wire, 5)
    await site.run(join, person.pk, policy.TIGHT_SIZE)
    await offer(wire, 2, size=None, transfer=transfer)  # 327,680 bytes are stored
    assert (await answer(wire, 2))["code"] == "too_large"
    other = await grown(wire, 1, handle=3)
    await site.run(join, person.pk, policy.MUTED)
    await offer(wire, 4, size=None, transfer=other)
    assert (await answer(wire, 4))["code"] == "forbidden"
    await offer(wire, 5)
    assert (await answer(wire, 5))["code"] == "forbidden"


async def test_what_is_complete_needs_no_leave_any_more(open_wire: Open, site: Site) -> None:
    person = await site.person()
    wire = await open_wire(person)
    transfer = await offer(wire, 1)
    await answer(wire, 1)
    await send(wire, 1)
    assert (await answer(wire, 1))["type"] == "done"
    await site.run(join, person.pk, policy.MUTED, policy.TINY_SIZE)
    await offer(wire, 2, transfer=transfer)
    assert (await answer(wire, 2))["type"] == "done"


async def test_early_data_and_plain_messages_are_held_to_the_policys_limit(
    open_wire: Open, site: Site, target: Target
) -> None:
    person = await site.person(policy.TINY_SIZE)
    wire = await open_wire(person)
    await offer(wire, 1, size=policy.TINY + 1)
    await send(wire, 1, bytes(policy.TINY + 1))
    assert (await answer(wire, 1))["code"] == "too_large"
    await offer(wire, 2, size=policy.TINY)
    await send(wire, 2, bytes(policy.TINY))
    assert (await answer(wire, 2))["type"] in ("accept", "done")
    async with Peer.open(target.ws_url, token=person.token, subprotocols=None) as plain:
        await plain.say_text("x" * (policy.TINY + 1))
        assert (await plain.hear("failed"))["code"] == "too_large"
        await plain.say_text("x" * policy.TINY)
        await plain.hear("stored")


async def test_meta_and_rows_are_charged(open_wire: Open, site: Site, usage: Any) -> None:
    person = await site.person("tight-bytes")
    wire = await open_wire(person)
    meta = {f"k{number}": "x" * 240 for number in range(30)}
    each = 1 + admission.overhead("n", meta)
    most = BYTES // each
    codes = []
    for handle in range(1, most + 10):
        await offer(wire, handle, size=1, meta=meta)
        await send(wire, handle, b"x")
        first = await answer(wire, handle)
        codes.append(first.get("code", "done"))
        if first["type"] == "accept":
            assert (await answer(wire, handle))["type"] == "done"
    assert codes == ["done"] * most + ["quota"] * 9
    assert await usage(person) == (most * each, 0)
    payload = await site.run(lambda: Payload.objects.filter(owner=person.pk).first())
    await site.run(payload.discard)
    assert await usage(person) == ((most - 1) * each, 0)


async def test_a_policy_that_raises_refuses_that_offer_and_says_so(open_wire: Open, site: Site, target: Target) -> None:
    person, other = await site.person(policy.RAISES), await site.person()
    wire = await open_wire(person)
    said = len(target.log())
    for handle, size in ((1, SIZE), (2, 5)):
        await offer(wire, handle, size=size)
        if size == 5:
            await send(wire, handle, b"12345")
        refused = await answer(wire, handle)
        assert refused["code"] == "busy"
        assert refused["retry_after"] > 0
    await site.until(lambda: f"policy fails for user:{person.pk}" in target.log()[said:], what="line in the log")
    await wire.settle()  # it is still open
    wire = await open_wire(other)
    await offer(wire, 1)
    assert (await answer(wire, 1))["type"] == "accept"


async def _upload_small(wire: Wire, handle: int) -> float:
    began = time.monotonic()
    await offer(wire, handle, size=5)
    await send(wire, handle, b"12345")
    if (await answer(wire, handle))["type"] == "accept":
        assert (await answer(wire, handle))["type"] == "done"
    return time.monotonic() - began


async def test_a_policy_that_hangs_over_some_holds_up_nobody_else(open_wire: Open, site: Site, target: Target) -> None:
    hung: list[Person] = [await site.person(policy.HANGS) for _ in range(2)]
    wires = [await open_wire(person) for person in hung]
    other = await open_wire(await site.person())
    for wire in wires:
        for handle in range(1, 7):
            await offer(wire, handle, size=SIZE if handle % 2 else 5)
            if not handle % 2:
                await send(wire, handle, b"12345")
    seconds = [await _upload_small(other, handle) for handle in range(1, 20)]
    assert max(seconds) < 4.0  # less than anybody waits for the policy
    for wire in wires:
        for handle in range(1, 7):
            assert (await answer(wire, handle))["code"] == "busy"
    await asyncio.gather(*(wire.settle() for wire in wires))
    assert "the site's policy has not answered" in target.log()
