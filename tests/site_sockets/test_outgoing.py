"""What a site sends on its own socket: small messages as they are, large ones as pointers to deliveries."""

from __future__ import annotations

import asyncio
import datetime
import json
import urllib.request

import pytest
from django.utils import timezone

from delivery.client import LargeMessages, connect
from delivery.errors import TransferAborted, UsageError
from tests.site_sockets.conftest import member
from tests.site_sockets.hearing import close_of, hear

INLINE = 65_536
MB40 = 40_000_000


async def test_a_message_at_the_limit_is_sent_as_it_is(open_own, alice):
    socket = await open_own("json", alice)
    await socket.send(json.dumps({"send": INLINE}))
    assert len(await hear(socket)) == INLINE - 2


@pytest.mark.parametrize(
    ("path", "say", "content_type"),
    [
        ("json", '{"send": 65537}', "application/json"),
        ("json", '{"binary": 65537}', "application/octet-stream"),
        ("text", "send 65537", "text/plain; charset=utf-8"),
        ("text", "binary 65537", "application/octet-stream"),
    ],
)
async def test_a_message_above_the_limit_becomes_a_pointer(open_own, alice, path, say, content_type):
    socket = await open_own(path, alice)
    await socket.send(say)
    pointer = await hear(socket)
    payload = pointer.pop("payload")
    assert pointer == {"type": "delivery.large", "size": INLINE + 1, "content_type": content_type}
    assert len(payload) == 36


async def test_the_bytes_of_a_large_message_come_beside_the_socket(open_own, alice, chat_stack):
    async with connect(chat_stack.ws_url, alice.token, receive=True) as client, LargeMessages(client) as large:
        socket = await open_own("json", alice)
        await socket.send(json.dumps({"send": MB40}))
        async with asyncio.timeout(30):
            message = await large.unpack(await socket.recv())
    assert message == '"' + "x" * (MB40 - 2) + '"'


async def test_binary_messages_stay_binary(open_own, alice, chat_stack):
    async with connect(chat_stack.ws_url, alice.token, receive=True) as client, LargeMessages(client) as large:
        socket = await open_own("text", alice)
        for size in (10, 100_000):
            await socket.send(f"binary {size}")
            assert await large.unpack(await socket.recv()) == b"x" * size


async def test_a_sites_own_encoder_is_used_for_large_messages_too(open_own, alice, chat_stack):
    async with connect(chat_stack.ws_url, alice.token, receive=True) as client, LargeMessages(client) as large:
        socket = await open_own("hooks", alice)
        for size in (10, 100_000):
            await socket.send(json.dumps({"send": size}))
            message = json.loads(await large.unpack(await socket.recv()))
            assert message == {"at": "2026-11-23 00:00:00+00:00", "text": "x" * size}


async def test_large_messages_wait_as_long_as_the_consumer_says(open_own, alice, site):
    socket = await open_own("lenient", alice)
    await socket.send(json.dumps({"send": 2000}))
    row = await site.payload((await hear(socket))["payload"])
    assert timezone.now() < row.expires_at <= timezone.now() + datetime.timedelta(hours=1)


async def test_a_pointer_may_say_where_to_fetch_over_http(open_own, alice, chat_stack):
    socket = await open_own("linking", alice)
    await socket.send(json.dumps({"send": 100_000}))
    url = (await hear(socket))["url"]

    def fetch() -> bytes:
        with urllib.request.urlopen(chat_stack.url.rstrip("/") + url, timeout=10) as answer:
            return bytes(answer.read())

    assert await asyncio.to_thread(fetch) == b'"' + b"x" * 99_998 + b'"'


async def test_without_a_login_a_large_message_has_nobody_to_go_to(open_own):
    socket = await open_own("json")
    await socket.send(json.dumps({"send": INLINE}))
    assert len(await hear(socket)) == INLINE - 2
    await socket.send(json.dumps({"send": INLINE + 1}))  # raises UsageError in the site's handler
    assert (await close_of(socket))[0] == 1006


# -- the Python client ---------------------------------------------------------------------------------------------


async def test_small_messages_pass_the_client_unchanged(alice, chat_stack):
    async with connect(chat_stack.ws_url, alice.token, receive=True) as client, LargeMessages(client) as large:
        for message in ("text", b"\x00", json.dumps({"type": "delivery.large.not"}), "delivery.large", "x" * INLINE):
            assert await large.pack(message) == message
            assert await large.unpack(message) == message
        assert await large.pack({"a": 1}) == '{"a": 1}'
        pointer = await large.pack("x" * (INLINE + 1))
        assert json.loads(pointer)["type"] == "delivery.large"


async def test_a_pointer_that_comes_before_its_offer_is_waited_for(site, alice, chat_stack):
    from delivery import deliver
    from delivery.models import Payload

    async with connect(chat_stack.ws_url, alice.token, receive=True) as client, LargeMessages(client) as large:
        payload = await site.run(deliver, b"y" * 100_000)
        pointer = json.dumps({"type": "delivery.large", "payload": str(payload.pk)})
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await large.unpack(pointer)
        unpacking = asyncio.create_task(large.unpack(pointer))
        second = await site.run(deliver, b"z" * 100_000, to=alice.address)
        pointer = json.dumps({"type": "delivery.large", "payload": str(second.pk)})
        assert await large.unpack(pointer) == b"z" * 100_000
        unpacking.cancel()
    assert await site.run(Payload.objects.filter(pk=second.pk).exists)


async def test_what_nobody_has_a_pointer_to_does_not_stand_in_the_way(site, alice, chat_stack):
    from delivery import deliver

    for number in range(40):  # the server has at most 16 unanswered offers
        await site.run(deliver, b"%d" % number, to=alice.address)
    async with connect(chat_stack.ws_url, alice.token, receive=True) as client, LargeMessages(client) as large:
        payload = await site.run(deliver, b"y" * 100_000, to=alice.address)
        pointer = json.dumps({"type": "delivery.large", "payload": str(payload.pk)})
        async with asyncio.timeout(20):
            assert await large.unpack(pointer) == b"y" * 100_000


async def test_a_message_that_has_ended_is_told(site, alice, chat_stack):
    from delivery import deliver

    async with connect(chat_stack.ws_url, alice.token, receive=True) as client, LargeMessages(client) as large:
        payload = await site.run(deliver, b"y" * 100_000, to=alice.address)
        await asyncio.sleep(0.3)  # offered, and held
        await site.run(payload.discard)
        with pytest.raises((TransferAborted, TimeoutError)):
            async with asyncio.timeout(2):
                await large.unpack(json.dumps({"type": "delivery.large", "payload": str(payload.pk)}))


async def test_a_message_above_what_the_program_takes_is_refused(site, alice, chat_stack):
    from delivery import deliver

    async with (
        connect(chat_stack.ws_url, alice.token, receive=True) as client,
        LargeMessages(client, max_size=99_999) as large,
    ):
        payload = await site.run(deliver, b"y" * 100_000, to=alice.address)
        with pytest.raises(UsageError, match="100000"):
            await large.unpack(json.dumps({"type": "delivery.large", "payload": str(payload.pk)}))


async def test_closing_ends_who_waits(site, alice, chat_stack):
    async with connect(chat_stack.ws_url, alice.token, receive=True) as client:
        async with LargeMessages(client) as large:
            unpacking = asyncio.create_task(large.unpack('{"type": "delivery.large", "payload": "none"}'))
            await asyncio.sleep(0)
        with pytest.raises(UsageError, match="closed"):
            await unpacking


async def test_a_client_that_does_not_receive_can_pack_only(alice, chat_stack):
    async with connect(chat_stack.ws_url, alice.token) as client, LargeMessages(client) as large:
        assert "payload" in json.loads(await large.pack(b"x" * 70_000))
        with pytest.raises(UsageError, match="receive=True"):
            await large.unpack('{"type": "delivery.large", "payload": "none"}')


async def test_one_delivery_serves_many_sockets(open_own, site, chat_stack):
    """The chat of the docs: what one says at length, all hear; it is stored for all of them at once."""
    from delivery.models import Payload

    people = [await member(site, "lounge") for _ in range(3)]
    async with connect(chat_stack.ws_url, people[0].token, receive=True) as client, LargeMessages(client) as large:
        sockets = [await open_own("chat/lounge", person) for person in people]
        await sockets[0].send(await large.pack({"text": "w" * 1_000_000}))
        pointers = [await hear(socket) for socket in sockets]
        assert len({pointer["payload"] for pointer in pointers}) == 1
        heard = json.loads(await large.unpack(json.dumps(pointers[0])))
    assert heard == {"text": "w" * 1_000_000}
    uploads = Payload.objects.filter(owner_id=people[0].pk, state="complete")
    assert not await site.run(uploads.exists)
