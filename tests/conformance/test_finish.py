"""PROTOCOL section 4: finish and done."""

from __future__ import annotations

import pytest

from tests.conformance.conftest import Connect
from tests.conformance.peer import CHUNK, Peer, sha256
from tests.stack import Person, Site

DATA = bytes(range(256)) * 1024 + b"tail"  # 256 KiB and a little: two chunks, stored by a worker


async def all_sent(peer: Peer, data: bytes = DATA, **members: object) -> tuple[int, str]:
    """Offer a payload and send everything but `finish`."""
    handle, transfer = await peer.offer(**{"size": len(data)} | members)
    await peer.hear("accept", handle=handle)
    for seq in range(-(-len(data) // CHUNK)):
        await peer.chunk(handle, seq, data[seq * CHUNK : (seq + 1) * CHUNK])
    return handle, transfer


async def test_done_tells_size_digest_and_payload(peer: Peer, site: Site) -> None:
    handle, transfer = await all_sent(peer)
    await peer.say("finish", handle=handle, chunks=2, size=len(DATA), sha256=sha256(DATA))
    done = await peer.hear("done")
    assert done.keys() >= {"transfer", "handle", "size", "sha256", "payload"}
    assert (done["transfer"], done["handle"]) == (transfer, handle)
    assert (done["size"], done["sha256"]) == (len(DATA), sha256(DATA))
    payload = await site.payload(done["payload"])
    assert (payload.state, payload.size, payload.sha256) == ("complete", len(DATA), sha256(DATA))
    assert await site.content(done["payload"]) == DATA


@pytest.mark.parametrize("digest", [None, sha256(DATA)])
async def test_the_digest_may_be_left_to_either_message(peer: Peer, digest: str | None) -> None:
    handle, _ = await all_sent(peer, sha256=sha256(DATA) if digest is None else None)
    await peer.say("finish", handle=handle, chunks=2, size=len(DATA), sha256=digest)
    assert (await peer.hear("done"))["sha256"] == sha256(DATA)


async def test_no_digest_at_all_is_fine(peer: Peer) -> None:
    handle, _ = await all_sent(peer)
    await peer.say("finish", handle=handle, chunks=2, size=len(DATA))
    assert (await peer.hear("done"))["sha256"] == sha256(DATA)


@pytest.mark.parametrize("where", ["offer", "finish"])
@pytest.mark.parametrize("data", [DATA, b"inline"], ids=["stored", "inline"])
async def test_a_wrong_digest_ends_the_transfer_for_good(peer: Peer, site: Site, data: bytes, where: str) -> None:
    wrong = "0" * 64
    handle, transfer = await all_sent(peer, data, sha256=wrong if where == "offer" else None)
    await peer.say(
        "finish",
        handle=handle,
        chunks=-(-len(data) // CHUNK),
        size=len(data),
        sha256=wrong if where == "finish" else None,
    )
    abort = await peer.hear("abort", handle=handle, transfer=transfer)
    assert (abort["code"], abort["final"]) == ("digest", True)
    row = await site.upload_row(transfer)
    assert (row.payload.state, row.payload.inline) == ("failed", None)
    await site.until(lambda: not site.stack.files_of(row.payload_id), what="freed files")
    handle, _ = await peer.offer(transfer=transfer, size=len(data))
    await peer.hear("reject", handle=handle)


async def test_an_offer_and_a_finish_that_contradict_each_other_end_it(peer: Peer) -> None:
    handle, _ = await all_sent(peer, sha256="0" * 64)
    await peer.say("finish", handle=handle, chunks=2, size=len(DATA), sha256=sha256(DATA))
    abort = await peer.hear("abort", handle=handle)
    assert (abort["code"], abort["final"]) == ("digest", True)


@pytest.mark.parametrize(
    "counts",
    [
        {"chunks": 1},
        {"chunks": 0},
        {"size": len(DATA) - 1},
        {"size": len(DATA) + 1},
        {"chunks": 0, "size": 0},
    ],
    ids=repr,
)
async def test_wrong_counts_close_4400(peer: Peer, counts: dict[str, int]) -> None:
    handle, _ = await all_sent(peer)
    await peer.say("finish", **{"handle": handle, "chunks": 2, "size": len(DATA), "sha256": None} | counts)
    assert (await peer.closes())[0] == 4400


@pytest.mark.parametrize("came", [0, 1])
async def test_a_finish_of_more_chunks_than_came_means_swallowed_messages_and_closes_1009(
    peer: Peer, came: int
) -> None:
    handle, _ = await peer.offer(size=len(DATA))
    await peer.hear("accept")
    for seq in range(came):
        await peer.chunk(handle, seq, DATA[:CHUNK])
    await peer.say("finish", handle=handle, chunks=2, size=len(DATA), sha256=None)
    assert (await peer.closes())[0] == 1009


async def test_a_finish_of_less_than_the_payload_closes_4400(peer: Peer) -> None:
    handle, _ = await peer.offer(size=len(DATA))
    await peer.hear("accept")
    await peer.chunk(handle, 0, DATA[:CHUNK])
    await peer.say("finish", handle=handle, chunks=1, size=CHUNK, sha256=None)
    assert (await peer.closes())[0] == 4400


async def test_a_wrong_size_of_an_unknown_size_closes_4400(peer: Peer) -> None:
    handle, _ = await all_sent(peer, size=None)
    await peer.say("finish", handle=handle, chunks=2, size=len(DATA) + 1, sha256=None)
    assert (await peer.closes())[0] == 4400


async def test_a_repeated_finish_changes_nothing(peer: Peer) -> None:
    handle, _ = await all_sent(peer)
    for _ in range(3):
        await peer.say("finish", handle=handle, chunks=2, size=len(DATA), sha256=sha256(DATA))
    await peer.hear("done")
    await peer.settle()
    assert not peer.has_heard("done")


async def test_offering_a_finished_transfer_again_answers_done_again(
    connect: Connect, alice: Person, peer: Peer
) -> None:
    done = await peer.upload(DATA, transfer=(transfer := "6f2d3f3e-0000-4000-8000-0123456789ab"))
    again = await connect(alice)
    for members in ({"size": len(DATA)}, {"size": None}, {"size": len(DATA), "sha256": sha256(DATA)}):
        handle, _ = await again.offer(transfer=transfer, **members)
        repeated = await again.hear("done", handle=handle)
        assert {**repeated, "handle": 0} == {**done, "handle": 0}


async def test_offering_a_finished_transfer_with_another_digest_is_a_mismatch(peer: Peer) -> None:
    done = await peer.upload(DATA)
    await peer.offer(transfer=done["transfer"], size=len(DATA), sha256="0" * 64)
    assert (await peer.hear("reject"))["code"] == "mismatch"
    await peer.offer(transfer=done["transfer"], size=1)
    assert (await peer.hear("reject"))["code"] == "mismatch"


async def test_nobody_sees_a_payload_before_it_is_complete(
    connect: Connect, peer: Peer, bob: Person, site: Site
) -> None:
    recipient = await connect(bob, receive=True)
    handle, transfer = await all_sent(peer, to=[bob.address])
    await peer.hear_ack(handle, 2)
    assert (await site.upload_row(transfer)).payload.state == "storing"
    await recipient.settle()
    assert not recipient.has_heard("offer")
    await peer.say("finish", handle=handle, chunks=2, size=len(DATA), sha256=sha256(DATA))
    await recipient.hear("offer")


async def test_an_empty_payload_is_offer_accept_finish_done(peer: Peer, site: Site) -> None:
    done = await peer.upload(b"")
    assert (done["size"], done["sha256"]) == (0, sha256(b""))
    assert await site.content(done["payload"]) == b""


async def test_a_connection_that_is_lost_while_sealing_gets_done_on_the_next(connect: Connect, alice: Person) -> None:
    first = await connect(alice)
    handle, transfer = await all_sent(first)
    await first.hear_ack(handle, 2)
    await first.say("finish", handle=handle, chunks=2, size=len(DATA), sha256=sha256(DATA))
    await first.cut()
    second = await connect(alice)
    handle, _ = await second.offer(transfer=transfer, size=len(DATA))
    answer = await second._take(lambda m: isinstance(m, dict) and m["type"] in ("accept", "done"), "an answer", 10)
    assert isinstance(answer, dict)
    if answer["type"] == "accept":
        assert answer["seq"] == 2
        await second.say("finish", handle=handle, chunks=2, size=len(DATA), sha256=sha256(DATA))
        answer = await second.hear("done")
    assert answer["sha256"] == sha256(DATA)
