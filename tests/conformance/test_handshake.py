"""PROTOCOL section 1: who gets in, and what hello and welcome say."""

from __future__ import annotations

import contextlib

import pytest
from django.contrib.auth.models import User
from websockets.exceptions import InvalidStatus

from delivery import make_token
from tests.conformance.conftest import Connect
from tests.conformance.peer import Peer, frame, new_id
from tests.stack import Person, Site, Stack


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "http://127.0.0.1.evil.example",
        "http://evil-127.0.0.1",
        "https://localhost.evil.example",
        "file://",
        "http://localhost@evil.example",
        "http://127.0.0.1",
        "http://127.0.0.1:1",
        "https://127.0.0.1",
        "",
    ],
)
async def test_a_foreign_origin_gets_403(shipped: Stack, alice: Person, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with Peer.open(shipped.ws_url, token=alice.token, headers={"Origin": origin}):
            pass
    assert refused.value.response.status_code == 403


async def test_an_origin_with_a_user_or_a_bad_port_gets_403(shipped: Stack, alice: Person) -> None:
    for origin in (f"http://evil@127.0.0.1:{shipped.port}", f"http://127.0.0.1:{shipped.port}x"):
        with pytest.raises(InvalidStatus) as refused:
            async with Peer.open(shipped.ws_url, token=alice.token, headers={"Origin": origin}):
                pass
        assert refused.value.response.status_code == 403


async def test_an_allowed_origin_gets_in(shipped: Stack, alice: Person) -> None:
    origin = {"Origin": f"http://127.0.0.1:{shipped.port}"}
    async with Peer.open(shipped.ws_url, token=alice.token, headers=origin) as peer:
        assert (await peer.hello())["user"] == alice.address


@pytest.mark.parametrize("subprotocols", [("chat",), ("delivery.v2", "delivery.v0"), ("DELIVERY.V1",)])
async def test_only_other_subprotocols_get_403(shipped: Stack, alice: Person, subprotocols: tuple[str, ...]) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with Peer.open(shipped.ws_url, token=alice.token, subprotocols=subprotocols):
            pass
    assert refused.value.response.status_code == 403


async def test_ours_among_other_subprotocols_is_chosen(shipped: Stack, alice: Person) -> None:
    async with Peer.open(shipped.ws_url, token=alice.token, subprotocols=("chat", "delivery.v1")) as peer:
        assert peer.socket.subprotocol == "delivery.v1"
        assert peer.socket.protocol.extensions == []


async def test_a_wrong_login_is_accepted_and_closed_with_4401(shipped: Stack) -> None:
    async with Peer.open(shipped.ws_url, token="made-up") as peer:
        code, reason = await peer.closes()
    assert (code, reason) == (4401, "login expired")


async def test_an_expired_login_is_accepted_and_closed_with_4401(shipped: Stack, site: Site, alice: Person) -> None:
    user = await site.run(User.objects.get, pk=alice.pk)
    async with Peer.open(shipped.ws_url, token=make_token(user, expires=-1)) as peer:
        assert (await peer.closes())[0] == 4401


async def test_a_token_is_void_after_a_change_of_password(shipped: Stack, site: Site, alice: Person) -> None:
    def change() -> None:
        user = User.objects.get(pk=alice.pk)
        user.set_password("another")
        user.save()

    await site.run(change)
    async with Peer.open(shipped.ws_url, token=alice.token) as peer:
        assert (await peer.closes())[0] == 4401


async def test_a_missing_login_closes_4401_only_after_hello(shipped: Stack) -> None:
    async with Peer.open(shipped.ws_url) as peer:
        await peer.say("hello", client="c", max_message=65_548)
        assert await peer.closes() == (4401, "login missing")
        assert not peer.has_heard("welcome")


async def test_hello_may_bring_the_token(shipped: Stack, alice: Person) -> None:
    async with Peer.open(shipped.ws_url) as peer:
        assert (await peer.hello(token=alice.token))["user"] == alice.address


async def test_a_wrong_token_in_hello_closes_4401(shipped: Stack) -> None:
    async with Peer.open(shipped.ws_url) as peer:
        await peer.say("hello", client="c", max_message=65_548, token="made-up")
        assert (await peer.closes())[0] == 4401


async def test_no_hello_closes_4408(shipped: Stack, alice: Person) -> None:
    async with Peer.open(shipped.ws_url, token=alice.token) as peer:
        code, reason = await peer.closes(seconds=8)
    assert code == 4408
    assert 0 < len(reason.encode()) <= 123


async def test_a_binary_message_before_hello_closes_1003(connect: Connect, alice: Person) -> None:
    peer = await connect(alice, hello=False)
    await peer.say_bytes(frame(1, 0, b"data"))
    assert (await peer.closes())[0] == 1003


async def test_another_message_before_hello_closes_4400(connect: Connect, alice: Person) -> None:
    peer = await connect(alice, hello=False)
    await peer.say("ping", id=1)
    assert (await peer.closes())[0] == 4400


async def test_a_second_hello_closes_4400(peer: Peer) -> None:
    await peer.say("hello", client="c", max_message=65_548)
    assert (await peer.closes())[0] == 4400


@pytest.mark.parametrize(
    "members",
    [
        {"client": ""},
        {"client": "x" * 65},
        {"client": 7},
        {"client": None},
        {"max_message": 65_547},
        {"max_message": "65548"},
        {"max_message": 65_548.0},
        {"max_message": 2**53},
        {"receive": 1},
        {"chunk_size": 4_095},
        {"chunk_size": 5_000},
        {"chunk_size": 8_388_608},
        {"chunk_size": 131_072, "max_message": 65_548},
        {"early_data": -1},
        {"early_data": True},
        {"groups": "ops"},
        {"groups": [1]},
        {"token": 5},
    ],
)
async def test_a_malformed_hello_closes_4400(connect: Connect, alice: Person, members: dict[str, object]) -> None:
    peer = await connect(alice, hello=False)
    await peer.say("hello", **{"client": "c", "max_message": 16_777_216} | members)
    code, reason = await peer.closes()
    assert code == 4400
    assert len(reason.encode()) <= 123


async def test_nothing_above_65536_bytes_may_come_before_the_welcome(connect: Connect, alice: Person) -> None:
    peer = await connect(alice, hello=False)
    await peer.say("hello", client="c", max_message=65_548, padding="x" * 65_536)
    assert (await peer.closes())[0] == 1009


async def test_welcome_says_what_the_server_takes(connect: Connect, alice: Person) -> None:
    peer = await connect(alice)
    welcome = peer.welcome
    assert welcome["version"] == 1
    assert isinstance(welcome["session"], str)
    assert welcome["user"] == alice.address
    assert welcome["groups"] == []
    assert welcome["max_message"] == 2 * 1024 * 1024
    assert welcome["chunk_size"] == 524_288
    assert welcome["chunk_size"] + 12 <= welcome["max_message"]
    assert welcome["window"] == 48 * 1024 * 1024
    assert welcome["early_data"] == 65_536
    assert welcome["heartbeat"] == 20.0
    assert welcome["retry"] == {"initial": 0.5, "max": 10.0}


async def test_sessions_differ(connect: Connect, alice: Person) -> None:
    client = new_id()
    first, second = await connect(alice, client=client), await connect(alice, client=client)
    assert first.welcome["session"] != second.welcome["session"]


async def test_unknown_members_are_ignored(connect: Connect, alice: Person) -> None:
    peer = await connect(alice, colour="green", nested={"a": [1, 2, {"b": None}]})
    await peer.settle()


async def test_the_smallest_hello_is_enough(connect: Connect, alice: Person) -> None:
    peer = await connect(alice, hello=False)
    await peer.say("hello", client="c", max_message=65_548)
    await peer.hear("welcome")


async def test_groups_that_the_policy_allows_are_joined(connect: Connect, site: Site) -> None:
    person = await site.person("blue", "green")
    peer = await connect(person, groups=["green", "red"], receive=True)
    assert peer.welcome["groups"] == ["green"]


async def test_a_client_may_close_at_any_time(shipped: Stack, alice: Person) -> None:
    with contextlib.suppress(OSError):
        async with Peer.open(shipped.ws_url, token=alice.token) as peer:
            await peer.say("hello", client="c", max_message=65_548)
            await peer.cut()
    async with Peer.open(shipped.ws_url, token=alice.token) as peer:
        await peer.hello()


async def test_anything_between_hello_and_welcome_closes_4400(connect: Connect, alice: Person) -> None:
    peer = await connect(alice, hello=False)
    # In one piece, so that the server reads the second before it can have answered the first.
    peer.socket.transport.write = (written := bytearray()).extend  # type: ignore[method-assign]
    await peer.say("hello", client="c", max_message=65_548)
    await peer.say("ping", id=1)
    del peer.socket.transport.write  # type: ignore[attr-defined]
    peer.socket.transport.write(bytes(written))
    assert (await peer.closes())[0] == 4400
