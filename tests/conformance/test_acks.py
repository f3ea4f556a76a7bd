"""PROTOCOL section 3, acks: cumulative, in time, and never more than is true."""

from __future__ import annotations

import asyncio

from delivery.models import Segment
from tests.conformance.peer import CHUNK, Peer
from tests.stack import Site

MIB = 1024 * 1024
SEGMENT = 16 * MIB


async def test_a_full_segment_is_stored_and_acked_at_once(peer: Peer, site: Site) -> None:
    handle, transfer = await peer.offer(size=64 * MIB)
    await peer.hear("accept")
    for seq in range(SEGMENT // CHUNK):
        await peer.chunk(handle, seq, bytes([seq]) * CHUNK)
    ack = await peer.hear_ack(handle, SEGMENT // CHUNK, seconds=5)
    assert ack["limit"] == SEGMENT // CHUNK + 48 * MIB // CHUNK
    row = await site.upload_row(transfer)
    assert row.position == SEGMENT
    stored = await site.run(lambda: list(Segment.objects.filter(payload=row.payload)))
    assert [(segment.offset, segment.length) for segment in stored] == [(0, SEGMENT)]
    assert [path.stat().st_size for path in site.stack.files_of(row.payload_id)] == [SEGMENT]


async def test_one_chunk_is_stored_two_seconds_after_it_came(peer: Peer) -> None:
    handle, _ = await peer.offer(size=64 * MIB)
    await peer.hear("accept")
    began = asyncio.get_running_loop().time()
    await peer.chunk(handle, 0, bytes(CHUNK))
    await peer.hear_ack(handle, 1)
    took = asyncio.get_running_loop().time() - began
    assert 1.8 < took < 3.5


async def test_an_inline_chunk_is_stored_two_seconds_after_it_came(peer: Peer, site: Site) -> None:
    handle, transfer = await peer.offer(size=8_192, chunk_size=4_096)
    await peer.hear("accept")
    began = asyncio.get_running_loop().time()
    await peer.chunk(handle, 0, b"x" * 4_096)
    await peer.hear_ack(handle, 1)
    assert 1.8 < asyncio.get_running_loop().time() - began < 3.5
    assert bytes((await site.upload_row(transfer)).payload.inline) == b"x" * 4_096


async def test_received_runs_ahead_of_what_is_stored(peer: Peer) -> None:
    handle, _ = await peer.offer(size=64 * MIB)
    await peer.hear("accept")
    await peer.chunk(handle, 0, bytes(CHUNK))
    await peer.chunk(handle, 1, bytes(CHUNK))
    ack = await peer.hear("ack", handle=handle)
    assert ack["seq"] == 0
    assert 1 <= ack["received"] <= 2


async def test_acks_are_cumulative_and_never_fall(peer: Peer) -> None:
    data = bytes(24 * MIB)
    handle, _ = await peer.offer(size=len(data))
    accept = await peer.hear("accept")
    acks = []
    limit, seq = accept["limit"], 0
    while seq < len(data) // CHUNK:
        while seq >= limit:
            acks.append(await peer.hear("ack", handle=handle))
            limit = acks[-1]["limit"]
        await peer.chunk(handle, seq, bytes(CHUNK))
        seq += 1
    await peer.say("finish", handle=handle, chunks=seq, size=len(data), sha256=None)
    await peer.hear("done", handle=handle, seconds=20)
    while peer.has_heard("ack"):
        acks.append(await peer.hear("ack"))
    for name in ("seq", "received", "limit"):
        numbers = [ack[name] for ack in acks]
        assert numbers == sorted(numbers)
    assert all(ack["seq"] <= ack["received"] <= seq for ack in acks)
    assert all(ack["limit"] <= ack["seq"] + 48 * MIB // CHUNK for ack in acks)


async def test_finish_stores_the_rest_without_waiting(peer: Peer) -> None:
    began = asyncio.get_running_loop().time()
    await peer.upload(bytes(CHUNK + 1))
    assert asyncio.get_running_loop().time() - began < 1.8
