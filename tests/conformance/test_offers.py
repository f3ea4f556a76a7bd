"""PROTOCOL section 2: offering and accepting uploads, and every way of being rejected."""

from __future__ import annotations

import contextlib
import datetime

import pytest
from websockets.exceptions import ConnectionClosed

from tests.conformance.conftest import Connect
from tests.conformance.peer import CHUNK, Peer, new_id, sha256
from tests.quick_settings import MAX_PAYLOAD_BYTES
from tests.stack import Person, Site, WebProcess

GIB = 1024**3
WINDOW = 48 * 1024 * 1024
MOST_CHUNK = 524_288  # as announced


@pytest.mark.parametrize("chunk_size", [4_096, 65_536, 262_144, 524_288, 1_048_576, 4_194_304])
async def test_accept_names_chunk_size_seq_and_limit(peer: Peer, chunk_size: int) -> None:
    handle, transfer = await peer.offer(size=3 * GIB, chunk_size=chunk_size)
    accept = await peer.hear("accept")
    agreed = min(chunk_size, MOST_CHUNK)
    assert accept["transfer"] == transfer
    assert accept["handle"] == handle
    assert accept["chunk_size"] == agreed
    assert accept["seq"] == 0
    assert accept["limit"] == WINDOW // agreed


async def test_accept_says_when_the_upload_expires(peer: Peer) -> None:
    await peer.offer(size=GIB)
    expires = datetime.datetime.fromisoformat((await peer.hear("accept"))["expires"])
    left = expires - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(hours=71) < left <= datetime.timedelta(hours=72)


async def test_an_offer_of_unknown_size_is_accepted(peer: Peer) -> None:
    await peer.offer(size=None)
    assert (await peer.hear("accept"))["chunk_size"] == CHUNK


async def test_optional_members_of_an_offer_may_be_left_out(peer: Peer) -> None:
    await peer.say("offer", transfer=new_id(), handle=1, name="", size=0, chunk_size=4096)
    await peer.hear("accept")


async def test_too_large_says_the_largest(peer: Peer) -> None:
    handle, transfer = await peer.offer(size=16 * GIB + 1)
    reject = await peer.hear("reject", handle=handle, transfer=transfer)
    assert (reject["code"], reject["max_size"]) == ("too_large", 16 * GIB)
    await peer.offer(size=16 * GIB)
    await peer.hear("accept")


async def test_more_chunks_than_can_be_counted_are_too_large(peer: Peer) -> None:
    await peer.offer(size=2**53 - 1, chunk_size=4096)
    assert (await peer.hear("reject"))["code"] == "too_large"


@pytest.mark.parametrize(
    "address", ["user:0", "user:999999999", "user:nobody", "user:", "group:", "nobody", "", "user:" + "9" * 400]
)
async def test_an_unknown_address_is_forbidden(peer: Peer, address: str) -> None:
    await peer.offer(to=[address])
    reject = await peer.hear("reject")
    assert reject["code"] == "forbidden"


async def test_one_unknown_address_among_known_ones_is_forbidden(peer: Peer, bob: Person) -> None:
    await peer.offer(to=[bob.address, "user:0"])
    assert (await peer.hear("reject"))["code"] == "forbidden"


async def test_unknown_and_forbidden_addresses_look_alike(connect: Connect, quick: WebProcess, site: Site) -> None:
    sender = await connect(await site.person("muted"), url=quick.ws_url)
    bob = await site.person()
    answers = []
    for address in (bob.address, "user:0"):
        await sender.offer(to=[address])
        reject = await sender.hear("reject")
        answers.append({name: value for name, value in reject.items() if name not in ("handle", "transfer")})
    assert answers[0] == answers[1]
    assert answers[0]["code"] == "forbidden"


async def test_a_rejected_offer_changes_nothing(peer: Peer, site: Site) -> None:
    from delivery.models import Transfer

    _, transfer = await peer.offer(to=["user:0"])
    await peer.hear("reject")
    assert not await site.run(Transfer.objects.filter(key=transfer).exists)
    await peer.offer(transfer=transfer)  # the same id, now to the site itself
    await peer.hear("accept")


async def test_names_and_numbers_address_the_same_user(peer: Peer, site: Site) -> None:
    done = await peer.upload(b"hello", to=["user:alice"])
    alice = await site.named("alice")
    payload = await site.payload(done["payload"])
    assert await site.run(lambda: list(payload.addresses.values_list("address", flat=True))) == [alice.address]


@pytest.mark.parametrize(
    ("first", "second"), [({"size": 100}, {"size": 101}), ({"sha256": "a" * 64}, {"sha256": "b" * 64})]
)
async def test_another_size_or_digest_is_a_mismatch(
    peer: Peer, first: dict[str, object], second: dict[str, object]
) -> None:
    _, transfer = await peer.offer(**first)
    await peer.hear("accept")
    handle, _ = await peer.offer(transfer=transfer, **second)
    assert (await peer.hear("reject", handle=handle))["code"] == "mismatch"


async def test_null_contradicts_nothing(peer: Peer) -> None:
    _, transfer = await peer.offer(size=100, sha256="a" * 64)
    await peer.hear("accept")
    await peer.offer(transfer=transfer, size=None, sha256=None)
    await peer.hear("accept")


async def test_a_digest_that_comes_later_stands(peer: Peer) -> None:
    _, transfer = await peer.offer(size=None)
    await peer.hear("accept")
    await peer.offer(transfer=transfer, size=100, sha256="a" * 64)
    await peer.hear("accept")
    await peer.offer(transfer=transfer, size=101)
    assert (await peer.hear("reject"))["code"] == "mismatch"


async def test_two_users_equal_ids_are_two_transfers(connect: Connect, alice: Person, bob: Person) -> None:
    first, second = await connect(alice), await connect(bob)
    transfer = new_id()
    one = await first.upload(b"from alice", transfer=transfer)
    two = await second.upload(b"from bob, another length", transfer=transfer)
    assert one["payload"] != two["payload"]
    assert two["sha256"] == sha256(b"from bob, another length")


async def test_to_and_meta_of_the_first_offer_stand(peer: Peer, site: Site, bob: Person) -> None:
    _, transfer = await peer.offer(size=5, meta={"a": "1"}, name="first")
    await peer.hear("accept")
    done = await peer.upload(b"hello", transfer=transfer, to=[bob.address], meta={"b": "2"}, name="second")
    payload = await site.payload(done["payload"])
    assert payload.meta == {"a": "1"}
    assert payload.name == "first"
    assert await site.run(payload.addresses.count) == 0


@pytest.mark.parametrize("step", [0, -1])
async def test_a_handle_that_does_not_rise_closes_4400(peer: Peer, step: int) -> None:
    await peer.offer(handle=5)
    await peer.offer(handle=5 + step)
    assert (await peer.closes())[0] == 4400


async def test_handles_may_skip(peer: Peer) -> None:
    for handle in (3, 100, 2**32 - 1):
        await peer.offer(handle=handle)
        await peer.hear("accept", handle=handle)


async def test_a_skipped_handle_was_never_offered(peer: Peer) -> None:
    await peer.offer(handle=3)
    await peer.hear("accept")
    await peer.chunk(2, 0, b"data")
    assert (await peer.closes())[0] == 4400


async def test_a_message_for_a_handle_that_is_over_is_dropped(peer: Peer) -> None:
    done = await peer.upload(b"hello")
    handle = done["handle"]
    await peer.chunk(handle, 0, b"hello")
    await peer.say("finish", handle=handle, chunks=1, size=5, sha256=None)
    await peer.say("abort", transfer=done["transfer"], handle=handle, code="cancelled", message="", final=True)
    await peer.settle()


async def test_sixteen_offers_at_once_are_answered(peer: Peer) -> None:
    for _ in range(16):
        await peer.offer()
    for handle in range(1, 17):
        await peer.hear("accept", handle=handle)


async def test_the_names_of_path_parts_and_controls_are_cleaned(peer: Peer, site: Site) -> None:
    done = await peer.upload(b"x", name="../../etc/pass\r\nwd\u202egpj.exe")
    assert (await site.payload(done["payload"])).name == "passwdgpj.exe"


async def test_payloads_over_the_limit_of_their_policy_are_too_large(
    connect: Connect, quick: WebProcess, alice: Person
) -> None:
    peer = await connect(alice, url=quick.ws_url)
    await peer.offer(size=MAX_PAYLOAD_BYTES + 1)
    assert (await peer.hear("reject"))["max_size"] == MAX_PAYLOAD_BYTES


async def test_an_unknown_size_that_grows_too_large_is_aborted_for_good(
    connect: Connect, quick: WebProcess, alice: Person, site: Site
) -> None:
    peer = await connect(alice, url=quick.ws_url)
    handle, transfer = await peer.offer(size=None, chunk_size=65_536)
    limit = (await peer.hear("accept"))["limit"]
    for seq in range(MAX_PAYLOAD_BYTES // 65_536):
        while seq >= limit:
            limit = (await peer.hear("ack"))["limit"]
        await peer.chunk(handle, seq, bytes(65_536))
    while limit <= MAX_PAYLOAD_BYTES // 65_536:
        limit = (await peer.hear("ack"))["limit"]
    await peer.chunk(handle, MAX_PAYLOAD_BYTES // 65_536, b"x")
    abort = await peer.hear("abort", handle=handle, transfer=transfer)
    assert (abort["code"], abort["final"]) == ("too_large", True)
    row = await site.upload_row(transfer)
    await site.until(lambda: not site.stack.files_of(row.payload_id), what="freed files")
    await peer.offer(transfer=transfer, size=None)
    reject = await peer.hear("reject")
    assert reject["code"] == "too_large"


async def test_more_than_sixteen_unanswered_offers_close_4429(peer: Peer) -> None:
    with contextlib.suppress(ConnectionClosed):
        for _ in range(200):
            await peer.offer(size=GIB)
    assert (await peer.closes())[0] == 4429
    assert (await peer.hear("going_away"))["reason"] == "rate"
