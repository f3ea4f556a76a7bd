"""What comes on a site's own socket: small messages as ever, large ones as stored payloads, too large ones refused."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from delivery.client import LargeMessages, connect
from tests.site_sockets.hearing import close_of, hear, json_of
from tests.site_sockets.settings import PLAIN_MAX_MESSAGE_BYTES

INLINE = 65_536
MB40 = 40_000_000


async def test_a_message_at_the_limit_is_handed_on_as_it_is(open_own, alice):
    socket = await open_own("json", alice)
    await socket.send(json_of(INLINE))
    assert len((await hear(socket))["small"]["text"]) == INLINE - 12


@pytest.mark.parametrize("size", [INLINE + 1, MB40])
async def test_a_message_above_the_limit_arrives_stored(open_own, alice, site, size):
    socket = await open_own("json", alice)
    message = json_of(size)
    await socket.send(message)
    told = await hear(socket)
    assert (told["size"], told["content_type"]) == (size, "application/json")
    assert told["sha256"] == hashlib.sha256(message.encode()).hexdigest()
    assert (await site.payload(told["large"])).owner_id == alice.pk


@pytest.mark.parametrize(
    ("message", "content_type"),
    [("ü" * 40_000, "text/plain; charset=utf-8"), (b"\x00" * 70_000, "application/octet-stream")],
    ids=["text", "binary"],
)
async def test_a_text_consumer_takes_text_and_bytes(open_own, alice, message, content_type):
    socket = await open_own("text", alice)
    await socket.send(message)
    told = await hear(socket)
    data = message.encode() if isinstance(message, str) else message
    assert (told["size"], told["content_type"]) == (len(data), content_type)


@pytest.mark.parametrize("message", ["short", b"\x00\x01"], ids=["text", "binary"])
async def test_small_messages_of_a_text_consumer_stay_what_they_are(open_own, alice, message):
    socket = await open_own("text", alice)
    await socket.send(message)
    assert await socket.recv() == message


@pytest.mark.parametrize("kind", [str, bytes])
async def test_the_largest_message_is_taken_and_one_byte_more_is_refused(open_own, alice, kind):
    message = "x" * PLAIN_MAX_MESSAGE_BYTES if kind is str else b"x" * PLAIN_MAX_MESSAGE_BYTES
    socket = await open_own("text", alice)
    await socket.send(message)
    assert (await hear(socket))["size"] == PLAIN_MAX_MESSAGE_BYTES
    await socket.send(message + message[:1])
    assert await close_of(socket) == (1009, "message too big")


async def test_a_fragmented_message_counts_as_a_whole(open_own, alice):
    socket = await open_own("text", alice)
    piece = b"x" * 1_048_576
    await socket.send([piece] * (PLAIN_MAX_MESSAGE_BYTES // len(piece)) + [b"x"])
    assert await close_of(socket) == (1009, "message too big")


async def test_small_messages_pass_while_a_large_one_is_stored(open_own, alice):
    socket = await open_own("json", alice)
    await socket.send(json_of(MB40))
    for number in range(20):
        await socket.send(json.dumps({"number": number}))
    heard = [await hear(socket) for _ in range(21)]
    assert [one["small"]["number"] for one in heard if "small" in one] == list(range(20))
    assert heard.index(next(one for one in heard if "large" in one)) > 0


async def test_several_large_messages_arrive_in_order(open_own, alice):
    socket = await open_own("json", alice)
    sizes = [INLINE + 1, 3_000_000, INLINE + 2, 9_000_000]
    for size in sizes:
        await socket.send(json_of(size))
    assert [(await hear(socket))["size"] for _ in sizes] == sizes


async def test_nobody_is_heard_while_another_handler_runs(open_own, alice):
    socket = await open_own("json", alice)
    await socket.send(json_of(INLINE + 1))
    await socket.send(json.dumps({"slow": 1.0}))
    await socket.send(json.dumps({"number": 1}))
    heard = [await hear(socket) for _ in range(2)]
    assert ["large" in one for one in heard] == [True, False]


async def test_other_bases_and_their_hooks_still_run(open_own, alice):
    socket = await open_own("hooks", alice)
    await socket.send("{}")
    assert await hear(socket) == ["connect", "receive"]
    await socket.send(json_of(INLINE + 1))
    assert await hear(socket) == ["connect", "receive", "large"]


# -- without a login -----------------------------------------------------------------------------------------------


async def test_without_a_login_small_messages_pass(open_own):
    socket = await open_own("json")
    await socket.send(json_of(INLINE))
    assert "small" in await hear(socket)


async def test_without_a_login_large_messages_are_too_big(open_own):
    socket = await open_own("json")
    await socket.send(json_of(INLINE + 1))
    assert await close_of(socket) == (1009, "message too big")


async def test_without_a_login_no_pointer_leads_anywhere(open_own, alice, chat_stack):
    async with connect(chat_stack.ws_url, alice.token) as client:
        receipt = await client.send(b"x" * 100_000)
    socket = await open_own("json")
    await socket.send(json.dumps({"type": "delivery.large", "payload": receipt.payload}))
    assert (await close_of(socket))[0] == 1008


# -- pointers ------------------------------------------------------------------------------------------------------


async def test_a_large_message_comes_as_a_pointer(open_own, alice, chat_stack):
    socket = await open_own("json", alice)
    async with connect(chat_stack.ws_url, alice.token, receive=True) as client, LargeMessages(client) as large:
        content = {"text": "z" * MB40}
        pointer = await large.pack(content)
        assert len(pointer) < 200
        await socket.send(pointer)
        told = await hear(socket)
    assert (told["size"], told["content_type"]) == (MB40 + 12, "application/json")
    assert told["sha256"] == hashlib.sha256(json.dumps(content).encode()).hexdigest()


async def pointers_to_nothing(site: Any, stack: Any, alice: Any) -> dict[str, str]:
    """Return payload ids of which Alice may use none."""
    from delivery.models import Payload

    bob = await site.person()
    async with connect(stack.ws_url, bob.token) as client:
        theirs = await client.send(b"x" * 100_000)
    unfinished = await site.run(Payload.objects.create, owner_id=alice.pk, size=5)
    async with connect(stack.ws_url, alice.token) as client:
        gone = await client.send(b"x" * 100_000)
    await site.run((await site.payload(gone.payload)).discard)
    return {
        "unknown": str(uuid.uuid4()),
        "somebody else's": theirs.payload or "",
        "incomplete": str(unfinished.pk),
        "gone": gone.payload or "",
        "none": "not an id",
    }


async def test_pointers_that_lead_nowhere_look_alike(open_own, alice, site, chat_stack):
    answers = set()
    for payload in (await pointers_to_nothing(site, chat_stack, alice)).values():
        socket = await open_own("json", alice)
        await socket.send(json.dumps({"type": "delivery.large", "payload": payload, "size": 5}))
        answers.add(await close_of(socket))
    assert answers == {(1008, "policy")}


async def test_a_site_may_answer_a_refused_message_instead_of_closing(open_own, alice):
    socket = await open_own("lenient", alice)
    await socket.send(json.dumps({"type": "delivery.large", "payload": str(uuid.uuid4())}))
    assert await hear(socket) == {"refused": "forbidden"}
    await socket.send(json_of(1001))
    assert (await hear(socket))["size"] == 1001


@pytest.mark.parametrize(
    "message",
    ['{"type": "other", "about": "delivery.large"}', '["delivery.large"]', '{"deep": {"type": "delivery.large"}}'],
)
async def test_what_only_mentions_a_pointer_is_the_sites_own_message(open_own, alice, message):
    socket = await open_own("hooks", alice)
    if message.startswith("["):
        socket = await open_own("json", alice)
    await socket.send(message)
    heard = await hear(socket)
    assert heard in ({"small": json.loads(message)}, ["connect", "receive"])


# -- what is not handed over ---------------------------------------------------------------------------------------


async def test_what_nobody_was_handed_is_not_kept(open_own, alice, site):
    from delivery.models import Payload, PayloadState

    socket = await open_own("json", alice)
    await socket.send(json_of(MB40))
    await site.until(Payload.objects.filter(owner_id=alice.pk).exists, what="payload")
    await socket.close()  # storing has only begun

    def kept() -> list[str]:
        live = Payload.objects.filter(owner_id=alice.pk)
        return list(live.exclude(state=PayloadState.CANCELLED).values_list("state", flat=True))

    await site.until(lambda: not kept(), what="end of the payload")


async def test_a_closed_socket_says_so(open_own, alice):
    socket = await open_own("json", alice)
    await socket.close()
    with pytest.raises(ConnectionClosed):
        await socket.send("x")
