"""PROTOCOL section 2, early data: a small payload in one round trip, and what happens to it otherwise."""

from __future__ import annotations

import pytest

from tests.conformance.conftest import Connect
from tests.conformance.peer import Peer, new_id, sha256
from tests.stack import Person, Site

EARLY = 65_536
ANNOUNCED = 524_288


async def offer_early(peer: Peer, data: bytes, **members: object) -> tuple[int, str]:
    """Offer, send and finish at once."""
    digest = members.pop("digest", sha256(data))
    checksum = members.pop("checksum", None)
    handle, transfer = await peer.offer(**{"size": len(data)} | members)
    await peer.chunk(handle, 0, data, checksum)  # type: ignore[arg-type]
    await peer.say("finish", handle=handle, chunks=1, size=len(data), sha256=digest)
    return handle, transfer


@pytest.mark.parametrize("size", [1, 4_095, 4_096, EARLY - 1, EARLY])
async def test_a_small_payload_takes_one_round_trip(peer: Peer, site: Site, size: int) -> None:
    data = bytes(range(256)) * 256
    handle, transfer = await offer_early(peer, data[:size])
    accept = await peer.hear("accept", handle=handle)
    done = await peer.hear("done", handle=handle, transfer=transfer)
    assert accept["seq"] == 0  # nothing was stored when the offer came
    assert (done["size"], done["sha256"]) == (size, sha256(data[:size]))
    assert await site.content(done["payload"]) == data[:size]


async def test_sixteen_at_once(peer: Peer) -> None:
    payloads = [bytes([number]) * (number + 1) for number in range(16)]
    offered = [await offer_early(peer, data) for data in payloads]
    for data, (handle, _) in zip(payloads, offered, strict=True):
        assert (await peer.hear("done", handle=handle))["sha256"] == sha256(data)


async def test_early_data_of_a_rejected_offer_is_dropped(peer: Peer) -> None:
    handle, _ = await offer_early(peer, b"for nobody", to=["user:0"])
    assert (await peer.hear("reject", handle=handle))["code"] == "forbidden"
    await peer.settle()


async def test_more_than_the_server_takes_early_closes_4400(peer: Peer) -> None:
    await offer_early(peer, bytes(EARLY + 1))
    assert (await peer.closes())[0] == 4400


async def test_early_data_in_chunks_above_the_announced_size_closes_4400(peer: Peer) -> None:
    await offer_early(peer, b"x", chunk_size=2 * ANNOUNCED)
    assert (await peer.closes())[0] == 4400


async def test_a_payload_of_two_chunks_is_none(peer: Peer) -> None:
    await offer_early(peer, bytes(8_192), chunk_size=4_096)
    assert (await peer.closes())[0] == 4400


async def test_damaged_early_data_is_asked_for_again_after_the_accept(peer: Peer) -> None:
    handle, _ = await offer_early(peer, b"hello", checksum=1)
    await peer.hear("accept", handle=handle)
    nack = await peer.hear("nack", handle=handle)
    assert (nack["seq"], nack["code"]) == (0, "checksum")
    await peer.chunk(handle, 0, b"hello")
    await peer.say("finish", handle=handle, chunks=1, size=5, sha256=sha256(b"hello"))
    await peer.hear("done", handle=handle)


async def test_a_wrong_digest_with_early_data_aborts(peer: Peer) -> None:
    handle, transfer = await offer_early(peer, b"hello", digest="0" * 64)
    abort = await peer.hear("abort", handle=handle, transfer=transfer)
    assert (abort["code"], abort["final"]) == ("digest", True)


async def test_a_lost_answer_makes_nothing_twice(connect: Connect, alice: Person) -> None:
    transfer = new_id()
    first = await connect(alice)
    await offer_early(first, b"hello", transfer=transfer)
    one = await first.hear("done")
    second = await connect(alice)
    handle, _ = await second.offer(transfer=transfer, size=5)
    assert (await second.hear("done", handle=handle))["payload"] == one["payload"]


async def test_a_repeated_early_offer_of_a_finished_transfer_is_done(peer: Peer) -> None:
    _, transfer = await offer_early(peer, b"hello")
    one = await peer.hear("done")
    await offer_early(peer, b"hello", transfer=transfer)
    assert (await peer.hear("done"))["payload"] == one["payload"]
    await peer.settle()


async def test_a_finished_transfer_does_not_take_other_early_bytes(peer: Peer) -> None:
    _, transfer = await offer_early(peer, b"hello")
    await peer.hear("done")
    handle, _ = await offer_early(peer, b"jello", transfer=transfer)
    assert (await peer.hear("reject", handle=handle))["code"] == "mismatch"
    await peer.settle()


async def test_an_early_chunk_without_finish_is_taken_in(peer: Peer) -> None:
    handle, _ = await peer.offer(size=5)
    await peer.chunk(handle, 0, b"hello")
    await peer.hear("accept", handle=handle)
    await peer.say("finish", handle=handle, chunks=1, size=5, sha256=None)
    assert (await peer.hear("done", handle=handle))["sha256"] == sha256(b"hello")


async def test_an_early_finish_with_wrong_counts_closes_4400(peer: Peer) -> None:
    handle, _ = await peer.offer(size=5)
    await peer.chunk(handle, 0, b"hello")
    await peer.say("finish", handle=handle, chunks=1, size=6, sha256=None)
    assert (await peer.closes())[0] == 4400


async def test_an_early_finish_whose_chunk_was_swallowed_closes_1009(peer: Peer) -> None:
    handle, _ = await peer.offer(size=5)
    await peer.say("finish", handle=handle, chunks=1, size=5, sha256=None)
    assert (await peer.closes())[0] == 1009


async def test_an_empty_payload_needs_its_accept(peer: Peer) -> None:
    handle, _ = await peer.offer(size=0)
    await peer.hear("accept", handle=handle)
    await peer.say("finish", handle=handle, chunks=0, size=0, sha256=sha256(b""))
    done = await peer.hear("done", handle=handle)
    assert (done["size"], done["sha256"]) == (0, sha256(b""))
