"""PROTOCOL section 2: going on where the receiver says, and who may when two connections want the same transfer."""

from __future__ import annotations

import functools
import random

import pytest

from tests.conformance.conftest import Connect
from tests.conformance.peer import CHUNK, Peer, new_id, sha256
from tests.quick_settings import WINDOW_BYTES
from tests.stack import Person, Site, WebProcess

SIZE = 65_536
DATA = random.Random(1).randbytes(10 * SIZE + 17)


@pytest.fixture
def connect(connect: Connect, quick: WebProcess) -> Connect:
    """Connect to the server whose segments are so small that every chunk is stored at once."""
    return functools.partial(connect, url=quick.ws_url)


async def part_stored(peer: Peer, chunks: int, data: bytes = DATA, **members: object) -> tuple[int, str]:
    """Offer a payload in chunks of 64 KiB and have the first `chunks` of them stored and acked."""
    handle, transfer = await peer.offer(**{"size": len(data), "chunk_size": SIZE} | members)
    await peer.hear("accept", handle=handle)
    for seq in range(chunks):
        await peer.chunk(handle, seq, data[seq * SIZE : (seq + 1) * SIZE])
    await peer.hear_ack(handle, chunks)
    return handle, transfer


async def test_resuming_goes_on_from_the_last_ack(connect: Connect, alice: Person, site: Site) -> None:
    first = await connect(alice)
    _, transfer = await part_stored(first, 4)
    await first.cut()
    second = await connect(alice)
    handle, _ = await second.offer(transfer=transfer, size=len(DATA), chunk_size=SIZE)
    accept = await second.hear("accept")
    assert (accept["seq"], accept["chunk_size"]) == (4, SIZE)
    assert accept["limit"] == 4 + WINDOW_BYTES // SIZE
    await second.send_from(DATA, accept)
    done = await second.hear("done", handle=handle)
    assert await site.content(done["payload"]) == DATA


@pytest.mark.parametrize(
    ("stored", "offered", "agreed", "seq"),
    [
        (4, CHUNK, CHUNK, 1),
        (4, 32_768, 32_768, 8),
        (4, 4_096, 4_096, 64),
        (3, CHUNK, SIZE, 3),  # 3 chunks of 64 KiB are no whole number of larger ones
        (6, CHUNK, 131_072, 3),
        (0, CHUNK, CHUNK, 0),
    ],
)
async def test_seq_is_rescaled_exactly(
    connect: Connect, alice: Person, site: Site, stored: int, offered: int, agreed: int, seq: int
) -> None:
    first = await connect(alice)
    handle, transfer = await first.offer(size=len(DATA), chunk_size=SIZE)
    await first.hear("accept")
    for number in range(stored):
        await first.chunk(handle, number, DATA[number * SIZE : (number + 1) * SIZE])
    await first.settle()
    await first.socket.close()
    await site.let_go(transfer)
    second = await connect(alice)
    await second.offer(transfer=transfer, size=len(DATA), chunk_size=offered)
    accept = await second.hear("accept")
    assert (accept["chunk_size"], accept["seq"]) == (agreed, seq)
    await second.send_from(DATA, accept)
    done = await second.hear("done")
    assert await site.content(done["payload"]) == DATA


async def test_what_was_taken_in_but_not_acked_is_kept(connect: Connect, alice: Person, site: Site) -> None:
    first = await connect(alice)
    handle, transfer = await first.offer(size=len(DATA), chunk_size=SIZE)
    await first.hear("accept")
    for seq in range(5):
        await first.chunk(handle, seq, DATA[seq * SIZE : (seq + 1) * SIZE])
    await first.settle()
    await first.cut()
    await site.let_go(transfer)
    second = await connect(alice)
    await second.offer(transfer=transfer, size=len(DATA), chunk_size=SIZE)
    assert (await second.hear("accept"))["seq"] == 5


async def test_everything_stored_resumes_at_the_end(connect: Connect, alice: Person) -> None:
    first = await connect(alice)
    _, transfer = await part_stored(first, 11)
    await first.cut()
    second = await connect(alice)
    handle, _ = await second.offer(transfer=transfer, size=len(DATA), chunk_size=CHUNK)
    accept = await second.hear("accept")
    assert (accept["chunk_size"], accept["seq"]) == (CHUNK, 3)
    await second.say("finish", handle=handle, chunks=3, size=len(DATA), sha256=sha256(DATA))
    await second.hear("done")


async def test_an_unknown_size_resumes(connect: Connect, alice: Person, site: Site) -> None:
    first = await connect(alice)
    _, transfer = await part_stored(first, 4, size=None)
    await first.cut()
    second = await connect(alice)
    await second.offer(transfer=transfer, size=None, chunk_size=SIZE)
    accept = await second.hear("accept")
    assert accept["seq"] == 4
    await second.send_from(DATA, accept)
    done = await second.hear("done")
    assert await site.content(done["payload"]) == DATA


async def test_an_unknown_size_whose_short_chunk_is_stored_resumes_at_its_end(connect: Connect, alice: Person) -> None:
    first = await connect(alice)
    _, transfer = await part_stored(first, 11, size=None)
    await first.cut()
    second = await connect(alice)
    handle, _ = await second.offer(transfer=transfer, size=None, chunk_size=SIZE)
    assert (await second.hear("accept"))["seq"] == 11
    await second.say("finish", handle=handle, chunks=11, size=len(DATA), sha256=sha256(DATA))
    await second.hear("done")


async def test_an_inline_payload_resumes(connect: Connect, alice: Person, site: Site) -> None:
    data = DATA[:20_000]
    first = await connect(alice)
    handle, transfer = await first.offer(size=len(data), chunk_size=4_096)
    await first.hear("accept")
    await first.chunk(handle, 0, data[:4_096])
    await first.chunk(handle, 1, data[4_096:8_192])
    await first.settle()
    await first.cut()
    await site.let_go(transfer)
    second = await connect(alice)
    await second.offer(transfer=transfer, size=len(data), chunk_size=4_096)
    accept = await second.hear("accept")
    assert accept["seq"] == 2
    await second.send_from(data, accept)
    done = await second.hear("done")
    assert await site.content(done["payload"]) == data


async def test_another_client_of_the_user_may_resume(connect: Connect, alice: Person) -> None:
    first = await connect(alice, client="one")
    _, transfer = await part_stored(first, 4)
    second = await connect(alice, client="two")
    await second.upload(DATA, transfer=transfer, chunk_size=SIZE)
    abort = await first.hear("abort")
    assert (abort["code"], abort["final"]) == ("taken_over", False)


async def test_a_newer_connection_takes_over_and_the_older_is_told(connect: Connect, alice: Person) -> None:
    first = await connect(alice, client="c")
    old, transfer = await part_stored(first, 4)
    second = await connect(alice, client="c")
    await second.offer(transfer=transfer, size=len(DATA), chunk_size=SIZE)
    assert (await second.hear("accept"))["seq"] == 4
    abort = await first.hear("abort", handle=old, transfer=transfer)
    assert (abort["code"], abort["final"]) == ("taken_over", False)


async def test_nothing_that_the_older_connection_sends_afterwards_has_any_effect(
    connect: Connect, alice: Person, site: Site
) -> None:
    first = await connect(alice, client="c")
    old, transfer = await part_stored(first, 4)
    second = await connect(alice, client="c")
    await second.offer(transfer=transfer, size=len(DATA), chunk_size=SIZE)
    accept = await second.hear("accept")
    # The wrong bytes at the right place, an end, and a cancel.
    for seq in range(4, 11):
        await first.chunk(old, seq, bytes(min(SIZE, len(DATA) - seq * SIZE)))
    await first.say("finish", handle=old, chunks=11, size=len(DATA), sha256=None)
    await first.say("abort", transfer=transfer, handle=old, code="paused", message="", final=False)
    await first.settle()
    await second.send_from(DATA, accept)
    done = await second.hear("done")
    assert await site.content(done["payload"]) == DATA


async def test_an_offer_on_an_older_connection_is_rejected(connect: Connect, alice: Person) -> None:
    first = await connect(alice, client="c")
    second = await connect(alice, client="c")
    _, transfer = await part_stored(second, 1)
    await first.offer(transfer=transfer, size=len(DATA), chunk_size=SIZE)
    assert (await first.hear("reject"))["code"] == "taken_over"
    await second.settle()
    assert not second.has_heard("abort")


async def test_an_older_connection_may_take_what_the_newer_one_has_left(
    connect: Connect, alice: Person, site: Site
) -> None:
    first = await connect(alice, client="c")
    second = await connect(alice, client="c")
    handle, transfer = await part_stored(second, 1)
    await second.say("abort", transfer=transfer, handle=handle, code="paused", message="", final=False)
    await site.let_go(transfer)
    await first.upload(DATA, transfer=transfer, chunk_size=SIZE)


async def test_an_offer_of_another_client_takes_over_though_its_connection_is_older(
    connect: Connect, alice: Person
) -> None:
    first = await connect(alice, client="one")
    second = await connect(alice, client="two")
    _, transfer = await part_stored(second, 1)
    await first.offer(transfer=transfer, size=len(DATA), chunk_size=SIZE)
    await first.hear("accept")
    await second.hear("abort", code="taken_over")


async def test_the_same_connection_may_offer_again(connect: Connect, alice: Person, site: Site) -> None:
    peer = await connect(alice)
    old, transfer = await part_stored(peer, 4)
    await peer.offer(transfer=transfer, size=len(DATA), chunk_size=SIZE)
    accept = await peer.hear("accept")
    await peer.hear("abort", handle=old, code="taken_over")
    assert accept["seq"] == 4
    assert (await site.upload_row(transfer)).channel  # still held, by its new handle
    await peer.chunk(old, 4, bytes(SIZE))  # dropped
    await peer.send_from(DATA, accept)
    done = await peer.hear("done")
    assert await site.content(done["payload"]) == DATA


async def test_somebody_elses_transfer_looks_like_an_unknown_one(
    connect: Connect, alice: Person, bob: Person, site: Site
) -> None:
    first = await connect(alice)
    _, transfer = await part_stored(first, 2)
    second = await connect(bob)
    await second.offer(transfer=transfer, size=999)
    assert (await second.hear("accept"))["seq"] == 0
    await first.settle()
    assert not first.has_heard("abort")


async def test_transfer_ids_do_not_mind_their_case(connect: Connect, alice: Person) -> None:
    transfer = new_id()
    first = await connect(alice)
    await part_stored(first, 2, transfer=transfer)
    second = await connect(alice)
    await second.offer(transfer=transfer.upper(), size=len(DATA), chunk_size=SIZE)
    accept = await second.hear("accept")
    assert (accept["seq"], accept["transfer"]) == (2, transfer.upper())


@pytest.mark.parametrize("members", [{}, {"size": len(DATA) + 1}], ids=["older connection", "mismatch"])
async def test_a_rejected_offer_does_not_disturb_who_holds_the_transfer(
    connect: Connect, site: Site, alice: Person, members: dict[str, object]
) -> None:
    url = site.stack.ws_url  # here a chunk waits for others before it is stored
    older, newer = [await connect(alice, client="c", url=url) for _ in range(2)]
    rejected = await connect(alice, client="d", url=url) if members else older
    handle, transfer = await newer.offer(size=len(DATA), chunk_size=SIZE)
    accept = await newer.hear("accept")
    await newer.chunk(handle, 0, DATA[:SIZE])
    row = await site.upload_row(transfer)
    await site.until(lambda: site.stack.buffered(row.payload_id) == 1, what="buffered chunk")
    await rejected.offer(**{"transfer": transfer, "size": len(DATA), "chunk_size": SIZE} | members)
    await rejected.hear("reject")
    await newer.send_from(DATA, accept | {"seq": 1})
    done = await newer.hear("done", handle=handle)
    assert await site.content(done["payload"]) == DATA


async def test_a_size_below_what_is_stored_is_a_mismatch(connect: Connect, alice: Person) -> None:
    peer = await connect(alice)
    _, transfer = await part_stored(peer, 4, size=None)
    await peer.offer(transfer=transfer, size=4 * SIZE - 1, chunk_size=SIZE)
    assert (await peer.hear("reject"))["code"] == "mismatch"
