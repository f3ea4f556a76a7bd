"""PROTOCOL section 3, chunks: which are taken, dropped, asked for again, or end the connection."""

from __future__ import annotations

import pytest

from tests.conformance.peer import CHUNK, Peer, sha256
from tests.stack import Site

SIZE = 4_096
A, B, C = b"a" * SIZE, b"b" * SIZE, b"c" * 100
DATA = A + B + C


async def open_upload(peer: Peer, data: bytes | None = DATA, **members: object) -> int:
    """Offer a payload in chunks of 4 KiB, and return its handle once it is accepted."""
    handle, _ = await peer.offer(**{"size": None if data is None else len(data), "chunk_size": SIZE} | members)
    await peer.hear("accept", handle=handle)
    return handle


async def finish(peer: Peer, handle: int, data: bytes = DATA) -> dict[str, object]:
    chunks = -(-len(data) // SIZE)
    await peer.say("finish", handle=handle, chunks=chunks, size=len(data), sha256=sha256(data))
    return await peer.hear("done", handle=handle)


async def test_chunks_in_order_are_stored(peer: Peer, site: Site) -> None:
    handle = await open_upload(peer)
    for seq, data in enumerate((A, B, C)):
        await peer.chunk(handle, seq, data)
    done = await finish(peer, handle)
    assert await site.content(done["payload"]) == DATA


async def test_a_chunk_below_received_is_dropped_unread(peer: Peer, site: Site) -> None:
    handle = await open_upload(peer)
    await peer.chunk(handle, 0, A)
    await peer.chunk(handle, 0, b"other bytes")
    await peer.chunk(handle, 1, B)
    await peer.chunk(handle, 0, A, checksum=0)
    await peer.chunk(handle, 1, bytes(SIZE * 3))
    await peer.chunk(handle, 2, C)
    done = await finish(peer, handle)
    assert await site.content(done["payload"]) == DATA


async def test_a_gap_means_swallowed_messages_and_closes_1009(peer: Peer) -> None:
    handle = await open_upload(peer)
    await peer.chunk(handle, 1, B)
    assert (await peer.closes())[0] == 1009


@pytest.mark.parametrize("length", [1, SIZE - 1, SIZE + 1, 2 * SIZE])
async def test_a_chunk_of_the_wrong_length_closes_4400(peer: Peer, length: int) -> None:
    handle = await open_upload(peer)
    await peer.chunk(handle, 0, bytes(length))
    assert (await peer.closes())[0] == 4400


@pytest.mark.parametrize("length", [99, 101, SIZE])
async def test_a_last_chunk_of_the_wrong_length_closes_4400(peer: Peer, length: int) -> None:
    handle = await open_upload(peer)
    await peer.chunk(handle, 0, A)
    await peer.chunk(handle, 1, B)
    await peer.chunk(handle, 2, bytes(length))
    assert (await peer.closes())[0] == 4400


async def test_a_chunk_past_the_end_closes_4400(peer: Peer) -> None:
    handle = await open_upload(peer, A)
    await peer.chunk(handle, 0, A)
    await peer.chunk(handle, 1, b"more")
    assert (await peer.closes())[0] == 4400


async def test_a_huge_sequence_number_closes_4400(peer: Peer) -> None:
    handle = await open_upload(peer)
    await peer.chunk(handle, 2**32 - 1, A)
    assert (await peer.closes())[0] == 4400


async def test_a_chunk_after_finish_closes_4400(peer: Peer) -> None:
    handle = await open_upload(peer, None)
    await peer.chunk(handle, 0, A)
    await peer.say("finish", handle=handle, chunks=1, size=SIZE, sha256="0" * 64)
    await peer.chunk(handle, 1, B)
    assert (await peer.closes())[0] == 4400


@pytest.mark.parametrize("beyond", [0, 1, 1_000])
async def test_a_chunk_at_or_past_the_limit_closes_4400(peer: Peer, beyond: int) -> None:
    handle, _ = await peer.offer(size=1024**3)
    limit = (await peer.hear("accept"))["limit"]
    await peer.chunk(handle, limit + beyond, bytes(CHUNK))
    assert (await peer.closes())[0] == 4400


async def test_a_damaged_chunk_is_asked_for_again(peer: Peer, site: Site) -> None:
    handle = await open_upload(peer)
    await peer.chunk(handle, 0, A)
    await peer.chunk(handle, 1, B, checksum=12_345)
    nack = await peer.hear("nack", handle=handle)
    assert (nack["seq"], nack["code"]) == (1, "checksum")
    await peer.chunk(handle, 1, B)
    await peer.chunk(handle, 2, C)
    done = await finish(peer, handle)
    assert await site.content(done["payload"]) == DATA


async def test_what_follows_a_damaged_chunk_is_dropped_until_it_comes(peer: Peer, site: Site) -> None:
    handle = await open_upload(peer)
    await peer.chunk(handle, 0, A, checksum=12_345)
    await peer.chunk(handle, 1, B)  # on its way already
    await peer.chunk(handle, 2, C)
    await peer.say("finish", handle=handle, chunks=3, size=len(DATA), sha256=sha256(DATA))
    await peer.hear("nack", handle=handle)
    for seq, data in enumerate((A, B, C)):
        await peer.chunk(handle, seq, data)
    done = await finish(peer, handle)
    assert await site.content(done["payload"]) == DATA
    assert not peer.has_heard("nack")


async def test_finish_has_to_be_repeated_after_a_nack(peer: Peer) -> None:
    handle = await open_upload(peer, A)
    await peer.chunk(handle, 0, A, checksum=1)
    await peer.say("finish", handle=handle, chunks=1, size=SIZE, sha256=None)
    await peer.hear("nack")
    await peer.chunk(handle, 0, A)
    await peer.hear_ack(handle, 1)
    assert not peer.has_heard("done")
    await finish(peer, handle, A)


async def test_the_third_nack_of_a_chunk_is_an_abort_that_detaches(peer: Peer) -> None:
    handle, transfer = await peer.offer(size=len(DATA), chunk_size=SIZE)
    await peer.hear("accept")
    await peer.chunk(handle, 0, A)
    for _ in range(2):
        await peer.chunk(handle, 1, B, checksum=7)
        await peer.hear("nack", seq=1)
    await peer.chunk(handle, 1, B, checksum=7)
    abort = await peer.hear("abort", handle=handle, transfer=transfer)
    assert (abort["code"], abort["final"]) == ("integrity", False)
    await peer.upload(DATA, transfer=transfer, chunk_size=SIZE)


async def test_nacks_of_different_chunks_do_not_add_up(peer: Peer) -> None:
    handle = await open_upload(peer)
    for seq, data in enumerate((A, B, C)):
        for _ in range(2):
            await peer.chunk(handle, seq, data, checksum=7)
            await peer.hear("nack", seq=seq)
        await peer.chunk(handle, seq, data)
    await finish(peer, handle)


async def test_chunks_of_several_transfers_take_turns(peer: Peer, site: Site) -> None:
    first, second = await open_upload(peer), await open_upload(peer, DATA[::-1])
    for seq in range(3):
        await peer.chunk(first, seq, DATA[seq * SIZE : (seq + 1) * SIZE])
        await peer.chunk(second, seq, DATA[::-1][seq * SIZE : (seq + 1) * SIZE])
    one, two = await finish(peer, first), await finish(peer, second, DATA[::-1])
    assert await site.content(one["payload"]) == DATA
    assert await site.content(two["payload"]) == DATA[::-1]


async def test_the_first_short_chunk_of_an_unknown_size_is_the_last(peer: Peer) -> None:
    handle = await open_upload(peer, None)
    await peer.chunk(handle, 0, b"short")
    await peer.chunk(handle, 1, A)
    assert (await peer.closes())[0] == 4400


async def test_an_unknown_size_may_end_with_a_short_chunk(peer: Peer, site: Site) -> None:
    handle = await open_upload(peer, None)
    for seq, data in enumerate((A, B, C)):
        await peer.chunk(handle, seq, data)
    done = await finish(peer, handle)
    assert await site.content(done["payload"]) == DATA


async def test_an_unknown_size_may_end_with_a_whole_chunk(peer: Peer, site: Site) -> None:
    handle = await open_upload(peer, None)
    for seq, data in enumerate((A, B)):
        await peer.chunk(handle, seq, data)
    done = await finish(peer, handle, A + B)
    assert await site.content(done["payload"]) == A + B


async def test_an_unknown_size_may_be_nothing(peer: Peer, site: Site) -> None:
    handle = await open_upload(peer, None)
    done = await finish(peer, handle, b"")
    assert (done["size"], done["sha256"]) == (0, sha256(b""))
    assert await site.content(done["payload"]) == b""
