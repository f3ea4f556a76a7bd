"""PROTOCOL sections 2 to 4 from the other end: the server sends, and an ordinary client receives."""

from __future__ import annotations

import datetime
import random

import pytest

from delivery import deliver, group
from delivery.models import ClientPosition, Event, Transfer
from tests.conformance.conftest import Connect
from tests.conformance.peer import CHUNK, Peer, sha256
from tests.stack import Person, Site

SIZE = 65_536
DATA = random.Random(2).randbytes(10 * SIZE + 17)
LARGE = random.Random(3).randbytes(9 * 1024 * 1024 + 5)


async def send(site: Site, person: Person, data: bytes = DATA, **options: object) -> str:
    """Have the site deliver a payload; return its id."""
    return str((await site.run(deliver, data, person.address, name="report.bin", **options)).pk)


async def accept(peer: Peer, offer: dict[str, object], *, seq: int = 0, limit: int = 2**20, size: int = SIZE) -> int:
    """Accept a delivery's offer; return its handle."""
    handle = offer["handle"]
    assert isinstance(handle, int)
    await peer.say("accept", transfer=offer["transfer"], handle=handle, chunk_size=size, seq=seq, limit=limit)
    return handle


async def receive(peer: Peer, offer: dict[str, object], *, seq: int = 0, size: int = SIZE) -> bytes:
    """Accept a delivery and take all of it, up to `finish`, acking each chunk."""
    handle = await accept(peer, offer, seq=seq, size=size)
    data = b""
    for number in range(seq, -(-int(str(offer["size"])) // size)):
        chunk = await peer.hear_chunk(handle)
        assert (chunk.seq, chunk.intact) == (number, True)
        data += chunk.data
        await peer.say("ack", handle=handle, seq=number + 1, received=number + 1, limit=2**20)
    await peer.hear("finish", handle=handle)
    return data


async def done(peer: Peer, offer: dict[str, object]) -> None:
    await peer.say(
        "done", transfer=offer["transfer"], handle=offer["handle"], size=offer["size"], sha256=offer["sha256"]
    )
    await peer.settle()


async def served(site: Site, payload: str) -> bool:
    """Wait until the only recipient of a payload counts as served."""
    rows = Transfer.objects.filter(payload=payload, direction="delivery")
    return bool(await site.until(lambda: rows.get().state == "done", what="served user"))


# -- offers ----------------------------------------------------------------------------------------------------------


async def test_an_offer_tells_all_about_the_payload(connect: Connect, site: Site, alice: Person, bob: Person) -> None:
    sender = await connect(alice)
    uploaded = await sender.upload(
        DATA, to=[bob.address], name="scan.tif", content_type="image/tiff", meta={"case": "7"}
    )
    peer = await connect(bob, receive=True)
    offer = await peer.hear("offer")
    assert offer["payload"] == uploaded["payload"]
    assert offer["from"] == alice.address
    assert (offer["name"], offer["content_type"], offer["meta"]) == ("scan.tif", "image/tiff", {"case": "7"})
    assert (offer["size"], offer["sha256"]) == (len(DATA), sha256(DATA))
    assert offer["handle"] >= 1
    assert offer["chunk_size"] == CHUNK
    assert "to" not in offer
    assert offer["expires"].endswith("Z")
    left = datetime.datetime.fromisoformat(offer["expires"]) - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=6, hours=23) < left <= datetime.timedelta(days=7)


async def test_what_the_site_sends_is_from_nobody(connect: Connect, site: Site, alice: Person) -> None:
    payload = await send(site, alice)
    offer = await (await connect(alice, receive=True)).hear("offer")
    assert (offer["payload"], offer["from"]) == (payload, None)


async def test_what_waits_is_offered_at_hello_oldest_first(connect: Connect, site: Site, alice: Person) -> None:
    payloads = [await send(site, alice, bytes([number])) for number in range(3)]
    peer = await connect(alice, receive=True)
    assert [(await peer.hear("offer"))["payload"] for _ in payloads] == payloads


async def test_what_arrives_is_offered_at_once(connect: Connect, site: Site, alice: Person) -> None:
    peer = await connect(alice, receive=True)
    await peer.settle()
    payload = await send(site, alice)
    assert (await peer.hear("offer", seconds=2))["payload"] == payload


async def test_a_client_that_does_not_receive_is_offered_nothing(connect: Connect, site: Site, alice: Person) -> None:
    quiet, loud = await connect(alice, receive=False), await connect(alice, receive=True)
    await send(site, alice)
    await loud.hear("offer")
    await quiet.settle()
    assert not quiet.has_heard("offer")


async def test_nobody_else_is_offered_it(connect: Connect, site: Site, alice: Person, bob: Person) -> None:
    other = await connect(bob, receive=True)
    peer = await connect(alice, receive=True)
    await send(site, alice)
    await peer.hear("offer")
    await other.settle()
    assert not other.has_heard("offer")


async def test_handles_of_offers_rise(connect: Connect, site: Site, alice: Person) -> None:
    for _ in range(3):
        await send(site, alice, b"x")
    peer = await connect(alice, receive=True)
    handles = [(await peer.hear("offer"))["handle"] for _ in range(3)]
    assert handles == sorted(set(handles))


async def test_at_most_sixteen_offers_are_unanswered(connect: Connect, site: Site, alice: Person) -> None:
    for number in range(18):
        await send(site, alice, bytes([number]))
    peer = await connect(alice, receive=True)
    offers = [await peer.hear("offer") for _ in range(16)]
    await peer.settle()
    assert not peer.has_heard("offer")
    await peer.say(
        "reject", transfer=offers[0]["transfer"], handle=offers[0]["handle"], code="declined", message="no room"
    )
    assert (await peer.hear("offer"))["handle"] > offers[-1]["handle"]


async def test_the_offered_chunk_size_fits_what_hello_announced(connect: Connect, site: Site, alice: Person) -> None:
    await send(site, alice)
    small = await connect(alice, receive=True, chunk_size=16_384)
    assert (await small.hear("offer"))["chunk_size"] == 16_384
    large = await connect(alice, receive=True, chunk_size=1_048_576)
    assert (await large.hear("offer"))["chunk_size"] == CHUNK
    tight = await connect(alice, receive=True, max_message=65_548)
    offer = await tight.hear("offer")
    assert offer["chunk_size"] == 65_536
    data = await receive(tight, offer)
    assert data == DATA


# -- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"x", DATA, LARGE], ids=len)
@pytest.mark.parametrize("size", [CHUNK, 4_096])
async def test_a_whole_delivery(connect: Connect, site: Site, alice: Person, data: bytes, size: int) -> None:
    payload = await send(site, alice, data)
    peer = await connect(alice, receive=True)
    offer = await peer.hear("offer")
    handle = await accept(peer, offer, size=size)
    chunks = [await peer.hear_chunk(handle) for _ in range(-(-len(data) // size))]
    assert [chunk.seq for chunk in chunks] == list(range(len(chunks)))
    assert all(chunk.intact for chunk in chunks)
    assert b"".join(chunk.data for chunk in chunks) == data
    finish = await peer.hear("finish", handle=handle)
    assert (finish["chunks"], finish["size"], finish["sha256"]) == (len(chunks), len(data), sha256(data))
    await done(peer, offer)
    assert await served(site, payload)


@pytest.mark.parametrize(("seq", "size"), [(3, SIZE), (7, 16_384), (160, 4_096), (2, CHUNK), (10, SIZE)])
async def test_accept_starts_wherever_the_client_wants(
    connect: Connect, site: Site, alice: Person, seq: int, size: int
) -> None:
    await send(site, alice)
    peer = await connect(alice, receive=True)
    assert await receive(peer, await peer.hear("offer"), seq=seq, size=size) == DATA[seq * size :]


async def test_accepting_at_the_end_gets_only_finish(connect: Connect, site: Site, alice: Person) -> None:
    payload = await send(site, alice)
    peer = await connect(alice, receive=True)
    offer = await peer.hear("offer")
    assert await receive(peer, offer, seq=11) == b""
    await done(peer, offer)
    assert await served(site, payload)


async def test_a_client_may_answer_an_offer_with_done(connect: Connect, site: Site, alice: Person) -> None:
    payload = await send(site, alice)
    peer = await connect(alice, receive=True)
    await done(peer, await peer.hear("offer"))
    assert await served(site, payload)


async def test_the_limit_is_respected(connect: Connect, site: Site, alice: Person) -> None:
    await send(site, alice)
    peer = await connect(alice, receive=True)
    handle = await accept(peer, await peer.hear("offer"), limit=3)
    assert [(await peer.hear_chunk(handle)).seq for _ in range(3)] == [0, 1, 2]
    await peer.settle()
    await peer.say("ack", handle=handle, seq=1, received=3, limit=4)
    assert (await peer.hear_chunk(handle)).seq == 3
    await peer.settle()
    assert peer.chunks_heard(handle) == []


async def test_a_limit_at_seq_holds_the_delivery(connect: Connect, site: Site, alice: Person) -> None:
    await send(site, alice)
    peer = await connect(alice, receive=True)
    handle = await accept(peer, await peer.hear("offer"), limit=0)
    for _ in range(10):
        await peer.settle()
    assert peer.chunks_heard(handle) == []
    await peer.say("ack", handle=handle, seq=0, received=0, limit=1)
    assert (await peer.hear_chunk(handle)).seq == 0


async def test_a_nack_sends_it_back(connect: Connect, site: Site, alice: Person) -> None:
    await send(site, alice)
    peer = await connect(alice, receive=True)
    offer = await peer.hear("offer")
    handle = await accept(peer, offer)
    await peer.hear("finish", handle=handle)
    assert len(peer.chunks_heard(handle)) == 11
    peer.heard.clear()
    await peer.say("nack", handle=handle, seq=9, code="checksum")
    assert b"".join([(await peer.hear_chunk(handle)).data for _ in range(2)]) == DATA[9 * SIZE :]
    finish = await peer.hear("finish", handle=handle)
    assert finish["sha256"] == sha256(DATA)
    await done(peer, offer)


async def test_a_small_delivery_passes_between_the_chunks_of_a_large_one(
    connect: Connect, site: Site, alice: Person
) -> None:
    await send(site, alice, LARGE)
    peer = await connect(alice, receive=True)
    large = await accept(peer, await peer.hear("offer"), limit=1, size=4_096)
    await peer.hear_chunk(large)
    await send(site, alice, b"urgent")
    small = await peer.hear("offer")
    await peer.say("ack", handle=large, seq=1, received=1, limit=2**20)
    await accept(peer, small)
    assert (await peer.hear_chunk(small["handle"])).data == b"urgent"
    await peer.hear("finish", handle=small["handle"])
    assert not peer.has_heard("finish", handle=large)


async def test_small_payloads_come_as_early_data(connect: Connect, site: Site, alice: Person) -> None:
    peer = await connect(alice, receive=True, early_data=SIZE)
    payload = await send(site, alice, b"quick")
    offer = await peer.hear("offer")
    assert (await peer.hear_chunk(offer["handle"])).data == b"quick"
    await peer.hear("finish", handle=offer["handle"])
    await peer.say(
        "accept", transfer=offer["transfer"], handle=offer["handle"], chunk_size=offer["chunk_size"], seq=0, limit=1
    )
    await done(peer, offer)
    assert await served(site, payload)


@pytest.mark.parametrize(("early_data", "size"), [(0, 5), (4, 5), (SIZE, SIZE + 1)])
async def test_nothing_comes_early_that_was_not_announced(
    connect: Connect, site: Site, alice: Person, early_data: int, size: int
) -> None:
    peer = await connect(alice, receive=True, early_data=early_data)
    await send(site, alice, bytes(size))
    offer = await peer.hear("offer")
    await peer.settle()
    assert peer.chunks_heard(offer["handle"]) == []


async def test_a_resumed_delivery_is_never_early(connect: Connect, site: Site, alice: Person) -> None:
    await send(site, alice, b"quick")
    first = await connect(alice, client="c", receive=True, early_data=SIZE)
    offer = await first.hear("offer")
    await accept(first, offer, size=offer["chunk_size"])
    await first.settle()
    await site.until(ClientPosition.objects.filter(transfer=offer["transfer"]).exists, what="taken delivery")
    await first.cut()
    second = await connect(alice, client="c", receive=True, early_data=SIZE)
    offer = await second.hear("offer")
    await second.settle()
    assert second.chunks_heard(offer["handle"]) == []


# -- violations ------------------------------------------------------------------------------------------------------


async def test_a_wrong_digest_in_done_closes_4400(connect: Connect, site: Site, alice: Person) -> None:
    payload = await send(site, alice)
    peer = await connect(alice, receive=True)
    offer = await peer.hear("offer")
    await receive(peer, offer)
    await peer.say("done", transfer=offer["transfer"], handle=offer["handle"], size=offer["size"], sha256="0" * 64)
    assert (await peer.closes())[0] == 4400
    row = await site.run(Transfer.objects.get, payload=payload)
    assert row.state == "live"


@pytest.mark.parametrize(
    "ack",
    [
        {"seq": 3, "received": 3, "limit": 2},  # beyond what was sent
        {"seq": 1, "received": 0, "limit": 2},
        {"seq": 0, "received": 3, "limit": 3},
        {"seq": 1, "received": 1, "limit": 1},  # a falling limit
    ],
)
async def test_an_impossible_ack_closes_4400(connect: Connect, site: Site, alice: Person, ack: dict[str, int]) -> None:
    await send(site, alice)
    peer = await connect(alice, receive=True)
    handle = await accept(peer, await peer.hear("offer"), limit=2)
    await peer.hear_chunk(handle)
    await peer.hear_chunk(handle)
    await peer.say("ack", handle=handle, **ack)
    assert (await peer.closes())[0] == 4400


async def test_a_falling_ack_closes_4400(connect: Connect, site: Site, alice: Person) -> None:
    await send(site, alice)
    peer = await connect(alice, receive=True)
    handle = await accept(peer, await peer.hear("offer"), limit=2)
    await peer.hear_chunk(handle)
    await peer.hear_chunk(handle)
    await peer.say("ack", handle=handle, seq=2, received=2, limit=2)
    await peer.say("ack", handle=handle, seq=1, received=2, limit=2)
    assert (await peer.closes())[0] == 4400


@pytest.mark.parametrize(
    "answer",
    [
        {"chunk_size": 2 * CHUNK},
        {"chunk_size": 5_000},
        {"seq": 12, "limit": 20},
        {"seq": 3, "limit": 2},
        {"transfer": "00000000-0000-4000-8000-000000000000"},
    ],
    ids=repr,
)
async def test_an_impossible_accept_closes_4400(
    connect: Connect, site: Site, alice: Person, answer: dict[str, object]
) -> None:
    await send(site, alice)
    peer = await connect(alice, receive=True)
    offer = await peer.hear("offer")
    usual = {"transfer": offer["transfer"], "handle": offer["handle"], "chunk_size": SIZE, "seq": 0, "limit": 4}
    await peer.say("accept", **usual | answer)
    assert (await peer.closes())[0] == 4400


# -- who gets it -----------------------------------------------------------------------------------------------------


async def test_each_client_has_its_own_position(connect: Connect, site: Site, alice: Person) -> None:
    payload = await send(site, alice)
    phone, laptop = [await connect(alice, client=name, receive=True) for name in ("phone", "laptop")]
    one, two = await phone.hear("offer"), await laptop.hear("offer")
    assert one["transfer"] == two["transfer"]
    assert await receive(phone, one) == DATA
    handle = await accept(laptop, two, limit=2)
    await laptop.hear_chunk(handle)
    await done(phone, one)
    assert await served(site, payload)  # the first one of a user serves the user
    await laptop.settle()
    assert not laptop.has_heard("abort")
    await laptop.hear_chunk(handle)
    await laptop.say("ack", handle=handle, seq=2, received=2, limit=2**20)
    rest = b"".join([(await laptop.hear_chunk(handle)).data for _ in range(9)])
    assert rest == DATA[2 * SIZE :]
    await laptop.hear("finish")
    await done(laptop, two)


async def test_after_a_user_is_served_only_clients_that_began_are_offered_it(
    connect: Connect, site: Site, alice: Person
) -> None:
    payload = await send(site, alice)
    began = await connect(alice, client="began", receive=True)
    await accept(began, await began.hear("offer"), limit=1)
    await began.hear_chunk(1)
    await began.cut()
    other = await connect(alice, client="other", receive=True)
    offer = await other.hear("offer")
    await receive(other, offer)
    await done(other, offer)
    assert await served(site, payload)
    late = await connect(alice, client="late", receive=True)
    again = await connect(alice, client="began", receive=True)
    assert (await again.hear("offer"))["payload"] == payload
    await late.settle()
    assert not late.has_heard("offer")
    repeated = await connect(alice, client="other", receive=True)
    await repeated.settle()
    assert not repeated.has_heard("offer")


async def test_declining_binds_that_client_only(connect: Connect, site: Site, alice: Person) -> None:
    payload = await send(site, alice)
    first = await connect(alice, client="first", receive=True)
    offer = await first.hear("offer")
    await first.say("reject", transfer=offer["transfer"], handle=offer["handle"], code="declined", message="")
    await site.until(
        ClientPosition.objects.filter(transfer=offer["transfer"], state="declined").exists, what="declined delivery"
    )
    again = await connect(alice, client="first", receive=True)
    second = await connect(alice, client="second", receive=True)
    assert (await second.hear("offer"))["payload"] == payload
    await again.settle()
    assert not again.has_heard("offer")


async def test_a_final_abort_binds_that_client_only(connect: Connect, site: Site, alice: Person) -> None:
    payload = await send(site, alice)
    first = await connect(alice, client="first", receive=True)
    offer = await first.hear("offer")
    handle = await accept(first, offer, limit=1)
    await first.say("abort", transfer=offer["transfer"], handle=handle, code="cancelled", message="", final=True)
    await site.until(
        ClientPosition.objects.filter(transfer=offer["transfer"], state="declined").exists, what="ended delivery"
    )
    again = await connect(alice, client="first", receive=True)
    second = await connect(alice, client="second", receive=True)
    assert (await second.hear("offer"))["payload"] == payload
    await again.settle()
    assert not again.has_heard("offer")


async def test_other_bytes_than_the_payloads_are_noted_and_disturb_nothing_else(
    connect: Connect, site: Site, alice: Person
) -> None:
    payload = await send(site, alice)
    peer = await connect(alice, client="first", receive=True)
    offer = await peer.hear("offer")
    handle = await accept(peer, offer, limit=1)
    await peer.say("abort", transfer=offer["transfer"], handle=handle, code="digest", message="", final=True)
    await site.until(
        ClientPosition.objects.filter(transfer=offer["transfer"], state="declined").exists, what="ended delivery"
    )
    await site.until(Event.objects.filter(payload=payload, kind="damaged").exists, what="event")
    other = await send(site, alice)
    assert (await peer.hear("offer"))["payload"] == other  # the connection lives


@pytest.mark.parametrize("code", ["paused", "busy"])
async def test_an_abort_that_is_not_final_lets_it_come_again(
    connect: Connect, site: Site, alice: Person, code: str
) -> None:
    payload = await send(site, alice)
    first = await connect(alice, client="c", receive=True)
    offer = await first.hear("offer")
    handle = await accept(first, offer, limit=1)
    await first.hear_chunk(handle)
    await first.say("abort", transfer=offer["transfer"], handle=handle, code=code, message="", final=False)
    await first.settle()
    second = await connect(alice, client="c", receive=True)
    offer = await second.hear("offer")
    assert offer["payload"] == payload
    assert await receive(second, offer) == DATA


async def test_a_newer_connection_takes_a_delivery_over_by_accepting(
    connect: Connect, site: Site, alice: Person
) -> None:
    await send(site, alice)
    first = await connect(alice, client="c", receive=True)
    offer = await first.hear("offer")
    old = await accept(first, offer, limit=1)
    await first.hear_chunk(old)
    second = await connect(alice, client="c", receive=True)
    again = await second.hear("offer")
    await first.say("ack", handle=old, seq=1, received=1, limit=2)  # offering alone moves nothing
    await first.hear_chunk(old)
    await accept(second, again, seq=2)
    abort = await first.hear("abort", handle=old)
    assert (abort["code"], abort["final"]) == ("taken_over", False)
    assert (await second.hear_chunk(again["handle"])).seq == 2


async def test_an_older_connection_does_not_get_it_back(connect: Connect, site: Site, alice: Person) -> None:
    await send(site, alice)
    first = await connect(alice, client="c", receive=True)
    old = await first.hear("offer")
    second = await connect(alice, client="c", receive=True)
    new = await second.hear("offer")
    await accept(second, new, limit=1)
    await second.hear_chunk(new["handle"])
    await accept(first, old, limit=1)
    abort = await first.hear("abort", handle=old["handle"])
    assert abort["code"] == "taken_over"
    await second.settle()
    assert not second.has_heard("abort")


async def test_the_position_is_written_down(connect: Connect, site: Site, alice: Person) -> None:
    payload = await send(site, alice)
    peer = await connect(alice, client="c", receive=True)
    offer = await peer.hear("offer")
    handle = await accept(peer, offer, limit=4)
    for _ in range(4):
        await peer.hear_chunk(handle)
    await peer.say("ack", handle=handle, seq=3, received=4, limit=4)
    await peer.settle()
    await peer.socket.close()
    rows = ClientPosition.objects.filter(transfer__payload=payload, client="c")
    await site.until(lambda: rows.get().position == 3 * SIZE, what="position")
    assert (await site.run(Transfer.objects.get, payload=payload)).position == 3 * SIZE


async def test_a_cancelled_payload_is_aborted_for_its_recipient(connect: Connect, site: Site, alice: Person) -> None:
    from delivery.transfers import cancel_payload

    payload = await send(site, alice)
    peer = await connect(alice, receive=True)
    offer = await peer.hear("offer")
    handle = await accept(peer, offer, limit=1)
    await peer.hear_chunk(handle)
    await site.run(cancel_payload, payload, by="")
    abort = await peer.hear("abort", handle=handle)
    assert (abort["code"], abort["final"]) == ("cancelled", True)


async def test_at_most_eight_clients_of_a_transfer_are_remembered(connect: Connect, site: Site, alice: Person) -> None:
    payload = await send(site, alice)
    for number in range(10):
        peer = await connect(alice, client=f"client-{number}", receive=True)
        handle = await accept(peer, await peer.hear("offer"), limit=1)
        await peer.hear_chunk(handle)
    rows = ClientPosition.objects.filter(transfer__payload=payload)
    names = await site.run(lambda: set(rows.values_list("client", flat=True)))
    assert names == {f"client-{number}" for number in range(2, 10)}


# -- groups ----------------------------------------------------------------------------------------------------------


async def test_a_group_is_served_user_by_user(connect: Connect, site: Site) -> None:
    alice, bob, carol = [await site.named(name) for name in ("alice", "bob", "carol")]
    peers = [await connect(person, receive=True) for person in (alice, bob, carol)]
    payload = str((await site.run(deliver, DATA, group("ops"))).pk)
    first, second = [await peer.hear("offer", payload=payload) for peer in peers[:2]]
    assert first["transfer"] != second["transfer"]
    await done(peers[0], first)
    assert await receive(peers[1], second) == DATA
    await done(peers[1], second)
    await peers[2].settle()
    assert not peers[2].has_heard("offer", payload=payload)


async def test_users_may_send_to_a_group(connect: Connect, site: Site, alice: Person) -> None:
    members = [await site.person("choir") for _ in range(2)]
    peers = [await connect(person, receive=True) for person in members]
    sender = await connect(alice)
    uploaded = await sender.upload(b"la la la", to=["group:choir"])
    for peer in peers:
        assert (await peer.hear("offer"))["payload"] == uploaded["payload"]


async def test_a_subscriber_gets_what_arrived_before_it_joined(connect: Connect, site: Site) -> None:
    payload = str((await site.run(deliver, DATA, group("late"))).pk)
    person = await site.person("late")
    peer = await connect(person, receive=True, groups=["late"])
    assert (await peer.hear("offer"))["payload"] == payload


async def test_a_member_of_two_addressed_groups_gets_it_once(connect: Connect, site: Site) -> None:
    person = await site.person("red", "blue")
    peer = await connect(person, receive=True, groups=["red", "blue"])
    await site.run(deliver, DATA, [group("red"), group("blue"), person.address])
    offer = await peer.hear("offer")
    await done(peer, offer)
    await peer.settle()
    assert not peer.has_heard("offer")
