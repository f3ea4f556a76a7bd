"""Whoever leaves a group gets nothing more of what is addressed to it: not later, and not the rest of what runs."""

from __future__ import annotations

import os
import time
import uuid
from typing import Any

import pytest
from django.contrib.auth.models import Group, User

from delivery import deliver, group
from delivery.models import Payload, Transfer
from tests.hostile import policy
from tests.hostile.conftest import MIB, Open
from tests.hostile.test_quotas import answer, offer, send
from tests.hostile.wire import Wire
from tests.stack import Person, Site

STOPPED_SECONDS = 10.0


@pytest.fixture
def ops() -> str:
    return f"ops-{uuid.uuid4().hex[:8]}"


def leave(pk: int, name: str) -> None:
    User.objects.get(pk=pk).groups.remove(Group.objects.get(name=name))


def join(pk: int, name: str) -> None:
    User.objects.get(pk=pk).groups.add(Group.objects.get_or_create(name=name)[0])


async def receiving(open_wire: Open, person: Person, *names: str) -> Wire:
    wire = await open_wire(person, hello=False)
    assert (await wire.hello(receive=True, groups=names))["groups"] == list(names)
    return wire


async def offered(wire: Wire, payload: Payload) -> dict[str, Any]:
    """Wait until a payload is offered; check that nothing else was."""
    found = await wire.hear("offer")
    assert found["payload"] == str(payload.pk)
    return found


async def begin(wire: Wire, found: dict[str, Any]) -> None:
    names = ("transfer", "handle", "chunk_size")
    await wire.say("accept", **{name: found[name] for name in names}, seq=0, limit=2)


@pytest.mark.parametrize("size", [5, 300_000], ids=["inline", "through Storage"])
async def test_what_comes_after_leaving_is_not_offered(open_wire: Open, site: Site, ops: str, size: int) -> None:
    bob = await site.person(ops)
    wire = await receiving(open_wire, bob, ops)
    await offered(wire, await site.run(deliver, bytes(size), group(ops)))
    await site.run(leave, bob.pk, ops)
    missed = await site.run(deliver, bytes(size), group(ops))
    await offered(wire, await site.run(lambda: deliver(bytes(size), to=bob.address)))
    assert not await site.run(Transfer.objects.filter(payload=missed, direction="delivery").exists)


@pytest.mark.parametrize("size", [5, 300_000], ids=["inline", "through Storage"])
async def test_what_waited_is_not_offered_after_leaving_but_is_on_return(
    open_wire: Open, site: Site, ops: str, size: int
) -> None:
    bob = await site.person(ops)
    waited = await site.run(deliver, bytes(size), group(ops))
    await site.run(leave, bob.pk, ops)
    wire = await receiving(open_wire, bob)
    own = await site.run(lambda: deliver(bytes(size), to=bob.address))
    found = await offered(wire, own)
    await wire.say("reject", transfer=found["transfer"], handle=found["handle"], code="declined", message="")
    await wire.settle()
    await site.run(join, bob.pk, ops)
    again = await receiving(open_wire, bob)  # another client of his
    seen = {(await again.hear("offer"))["payload"] for _ in range(2)}
    assert seen == {str(waited.pk), str(own.pk)}


async def test_a_running_delivery_stops_and_others_go_on(open_wire: Open, site: Site, ops: str) -> None:
    bob, eve = await site.person(ops), await site.person(ops)
    payload = await site.run(lambda: deliver(os.urandom(8 * MIB), to=[group(ops), eve.address]))
    wires = [await receiving(open_wire, person, ops) for person in (bob, eve)]
    for wire in wires:
        await begin(wire, await offered(wire, payload))
    for person in (bob, eve):
        await site.run(leave, person.pk, ops)
    began = time.monotonic()
    ended = await wires[0].hear("abort", seconds=STOPPED_SECONDS)
    assert (ended["code"], ended["final"]) == ("forbidden", True)
    assert time.monotonic() - began < STOPPED_SECONDS
    await wires[1].settle()
    assert not [one for one in wires[1].heard if isinstance(one, dict) and one["type"] == "abort"]
    rows = Transfer.objects.filter(payload=payload, direction="delivery", state="live")
    assert await site.run(rows.count) == 2  # Bob's stays, for his return
    await site.run(payload.discard)


async def test_a_small_upload_for_a_group_misses_who_has_left(open_wire: Open, site: Site, ops: str) -> None:
    bob, eve, sender = await site.person(ops), await site.person(ops), await site.person()
    receivers = [await receiving(open_wire, person, ops) for person in (bob, eve)]
    await site.run(leave, bob.pk, ops)
    wire = await open_wire(sender)
    await offer(wire, 1, size=5, to=[f"group:{ops}"])
    await send(wire, 1, b"12345")
    done = await answer(wire, 1)
    payload = (done if done["type"] == "done" else await answer(wire, 1))["payload"]
    assert (await receivers[1].hear("offer"))["payload"] == payload
    own = await site.run(lambda: deliver(b"own", to=bob.address))
    await offered(receivers[0], own)


async def test_a_policy_that_fails_over_a_group_gives_it_to_nobody(open_wire: Open, site: Site) -> None:
    bob = await site.person(policy.BROKEN_GROUP)
    wire = await open_wire(bob, hello=False)
    assert (await wire.hello(receive=True, groups=[policy.BROKEN_GROUP]))["groups"] == []
    await offer(wire, 1, size=5, to=[f"group:{policy.BROKEN_GROUP}"])
    await send(wire, 1, b"12345")
    assert (await answer(wire, 1))["type"] == "accept"  # it may be sent; to whom is asked when it is complete
    ended = await wire.hear("abort", handle=1)
    assert (ended["code"], ended["final"]) == ("busy", False)
