"""Control messages with the wrong thing in every member, from the wire to the answer. The core by itself has its own.

Also what one user may learn of another's transfers, and what becomes of names.
"""

from __future__ import annotations

import json
import statistics
import time
import uuid
from typing import Any

import pytest
from django.test import Client as Browser
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from delivery.models import Payload, Transfer
from delivery.protocol import messages
from tests.hostile.conftest import Open, Target
from tests.hostile.wire import TEXT, Wire, frame
from tests.stack import Person, Site

ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    2**53,
    2**63,
    "",
    "x" * 300,
    "\u202e",
    [],
    [[]],
    ["x", 1],
    {},
    {"a": {"b": 1}},
]
TRANSFER = "0f8fad5b-d9cb-469f-a165-70867728950e"
USUAL: dict[str, Any] = {
    "transfer": TRANSFER,
    "handle": 1,
    "name": "n",
    "size": 1,
    "content_type": "a/b",
    "chunk_size": 4096,
    "sha256": "0" * 64,
    "to": [],
    "meta": {},
    "seq": 0,
    "limit": 1,
    "received": 0,
    "code": "cancelled",
    "message": "m",
    "final": True,
    "id": 1,
    "chunks": 1,
    "payload": TRANSFER,
}
KINDS = {name: kind for name, kind in messages.FROM_CLIENT.items() if name != "hello"}
CASES = [(name, member) for name, kind in KINDS.items() for member in kind.MEMBERS]


def of(kind: str) -> dict[str, Any]:
    return {"type": kind, **{name: USUAL[name] for name in KINDS[kind].MEMBERS if name in USUAL}}


async def answer_to(wire: Wire, text: str) -> int | None:
    """Say something and then ping; return the close code that it brought, None where the socket lives."""
    await wire.send(frame(TEXT, text.encode("utf-8", "surrogatepass")))
    try:
        await wire.settle()
    except AssertionError:  # closed meanwhile
        return (await wire.closes())[0]
    return None


@pytest.mark.usefixtures("unharmed")
async def test_the_wrong_type_in_every_member_of_every_message(open_wire: Open, mallory: Person) -> None:
    wire = await open_wire(mallory)
    for kind, member in CASES:
        for odd in ODD:
            code = await answer_to(wire, json.dumps(of(kind) | {member: odd}))
            assert code in (None, 4400, 1007), (kind, member, odd)
            if code is not None:
                assert wire.close is not None
                assert len(wire.close[1].encode()) <= 123
                await wire.end()
                wire = await open_wire(mallory)


values = st.recursive(
    st.sampled_from(ODD) | st.text(max_size=20) | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
mutated = st.tuples(st.sampled_from(CASES), values).map(lambda case: json.dumps(of(case[0][0]) | {case[0][1]: case[1]}))
texts = mutated | values.map(json.dumps) | st.text(max_size=200)


@pytest.mark.usefixtures("unharmed")
def test_any_text_at_all(target: Target, mallory_token: str) -> None:
    @settings(
        max_examples=60,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(said=st.lists(texts, min_size=1, max_size=12))
    def say(said: list[str]) -> None:
        import asyncio

        async def run() -> None:
            async with Wire.open(target.port, mallory_token) as wire:
                await wire.hello()
                for text in said:
                    code = await answer_to(wire, text)
                    assert code in (None, 4400, 4429, 1007), text
                    if code is not None:
                        return

        asyncio.run(run())

    say()


@pytest.fixture
def mallory_token(site: Site) -> str:
    import asyncio

    return asyncio.run(site.person()).token


# -- other people's transfers ------------------------------------------------------------------------------------------

ROUNDS = 40


async def test_somebody_elses_transfer_answers_like_an_unknown_one_and_as_fast(
    open_wire: Open, site: Site, mallory: Person
) -> None:
    victim = await open_wire(await site.person())
    theirs = str(uuid.uuid4())
    offer = {"name": "n", "size": 100_000, "chunk_size": 65_536}
    await victim.say("offer", transfer=theirs, handle=1, **offer)
    await victim.hear("accept", handle=1)
    wire = await open_wire(mallory)
    handle = 0

    async def ask(transfer: str) -> tuple[dict[str, Any], float]:
        nonlocal handle
        handle += 1
        began = time.perf_counter()
        await wire.say("offer", transfer=transfer, handle=handle, **offer)
        answer = await wire.hear("accept", handle=handle)
        taken = time.perf_counter() - began
        await wire.say("abort", transfer=transfer, handle=handle, code="cancelled", final=True)
        await wire.settle()
        await site.until(lambda: not Transfer.objects.filter(user=mallory.pk, state="live").exists(), what="end")
        await site.run(Payload.objects.filter(owner=mallory.pk).delete)  # or its id would not be new again
        return answer, taken

    known, unknown = [], []
    for _ in range(ROUNDS):
        first, seconds = await ask(theirs)
        known.append(seconds)
        second, seconds = await ask(str(uuid.uuid4()))
        unknown.append(seconds)
        for one in (first, second):
            del one["transfer"], one["handle"], one["expires"]
        assert first == second
    slower = statistics.median(known) - statistics.median(unknown)
    assert abs(slower) < 0.5 * statistics.median(unknown)
    await victim.settle()
    assert not any(message["type"] == "abort" for message in victim.heard if isinstance(message, dict))


# -- names -------------------------------------------------------------------------------------------------------------

NAMES = {
    "../../etc/passwd": "passwd",
    "C:\\Windows\\evil.exe": "evil.exe",
    "/": "",
    "..": "..",
    "a\r\nSet-Cookie: b=c": "aSet-Cookie: b=c",
    "invoice\u202efdp.exe": "invoicefdp.exe",
    "\u2066x\u2069\u200f\u200b\ufeffy": "xy",
    "a\x1b[31mred\x7f\x9b": "a[31mred",
    "<script>alert(1)<b>": "<script>alert(1)<b>",
    "\" onload='x' {{ 7 }} {% x %}": "\" onload='x' {{ 7 }} {% x %}",
    "x" * 255: "x" * 255,
}


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
async def test_names_are_cleaned(open_wire: Open, site: Site, mallory: Person, name: str) -> None:
    wire = await open_wire(mallory)
    await wire.say("offer", transfer=str(uuid.uuid4()), handle=1, name=name, size=0, chunk_size=4096, content_type=name)
    await wire.hear("accept", handle=1)
    await wire.say("finish", handle=1, chunks=0, size=0)
    done = await wire.hear("done", handle=1)
    payload = await site.payload(done["payload"])
    assert payload.name == NAMES[name]
    assert payload.content_type.isprintable()


async def test_a_name_of_300_characters_closes_4400(open_wire: Open, mallory: Person) -> None:
    wire = await open_wire(mallory)
    await wire.say("offer", transfer=str(uuid.uuid4()), handle=1, name="x" * 300, size=0, chunk_size=4096)
    assert (await wire.closes())[0] == 4400


async def test_names_are_escaped_in_the_admin(open_wire: Open, site: Site, mallory: Person) -> None:
    wire = await open_wire(mallory)
    name = "<script>alert(1)<b>&\"'"
    offer = {"name": name, "content_type": name, "meta": {name: name}, "size": 0, "chunk_size": 4096}
    await wire.say("offer", transfer=str(uuid.uuid4()), handle=1, **offer)
    await wire.hear("accept", handle=1)
    await wire.say("finish", handle=1, chunks=0, size=0)
    payload = (await wire.hear("done", handle=1))["payload"]

    def pages() -> list[str]:
        from django.contrib.auth.models import User

        browser = Browser(headers={"host": "localhost"})
        browser.force_login(User.objects.get(username="admin"))
        urls = ["", "delivery/payload/", f"delivery/payload/{payload}/change/", "delivery/transfer/"]
        answers = [browser.get(f"/admin/{url}", follow=True) for url in urls]
        assert {answer.status_code for answer in answers} == {200}
        return [answer.content.decode() for answer in answers]

    found = await site.run(pages)
    assert any("&lt;script&gt;alert(1)" in page for page in found)
    assert not any("<script>alert(1)" in page for page in found)
