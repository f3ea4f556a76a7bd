"""Payloads of every size at which something changes, from one client to another."""

from __future__ import annotations

import random

import pytest

from delivery.models import Segment
from tests.conformance.conftest import Connect
from tests.conformance.peer import CHUNK, Peer, sha256
from tests.stack import Person, Site

INLINE = 65_536
SEGMENT = 16 * 1024 * 1024
SIZES = [
    0,
    1,
    INLINE - 1,
    INLINE,
    INLINE + 1,
    CHUNK - 1,
    CHUNK,
    CHUNK + 1,
    2 * CHUNK,
    SEGMENT - 1,
    SEGMENT,
    SEGMENT + 1,
    2 * SEGMENT + CHUNK,
]


async def receive(peer: Peer, size: int) -> bytes:
    """Take the next delivery that is offered, in chunks of `size`."""
    offer = await peer.hear("offer")
    handle = offer["handle"]
    count = -(-offer["size"] // size)
    await peer.say("accept", transfer=offer["transfer"], handle=handle, chunk_size=size, seq=0, limit=count)
    data = b"".join([(await peer.hear_chunk(handle, seconds=20)).data for _ in range(count)])
    finish = await peer.hear("finish", handle=handle)
    assert finish["sha256"] == sha256(data)
    await peer.say("done", transfer=offer["transfer"], handle=handle, size=len(data), sha256=sha256(data))
    return data


@pytest.mark.parametrize("size", SIZES)
async def test_what_one_sends_the_other_gets(
    connect: Connect, site: Site, alice: Person, bob: Person, size: int
) -> None:
    data = random.Random(size).randbytes(size)
    sender, recipient = await connect(alice), await connect(bob, receive=True)
    done = await sender.upload(data, to=[bob.address])
    assert (done["size"], done["sha256"]) == (size, sha256(data))
    assert await receive(recipient, CHUNK) == data
    stored = await site.run(lambda: list(Segment.objects.filter(payload=done["payload"])))
    assert sum(segment.length for segment in stored) == (0 if size <= INLINE else size)
    assert len(site.stack.files_of(done["payload"])) == len(stored)


@pytest.mark.parametrize("up", [4_096, 131_072])
@pytest.mark.parametrize("down", [4_096, 65_536])
async def test_chunk_sizes_of_both_legs_are_independent(
    connect: Connect, alice: Person, bob: Person, up: int, down: int
) -> None:
    data = random.Random(up).randbytes(1_000_003)
    sender, recipient = await connect(alice), await connect(bob, receive=True)
    await sender.upload(data, to=[bob.address], chunk_size=up)
    assert await receive(recipient, down) == data


@pytest.mark.parametrize("size", [0, 1, INLINE + 1, CHUNK, 3 * CHUNK + 5])
async def test_a_payload_of_unknown_size(connect: Connect, site: Site, alice: Person, size: int) -> None:
    data = random.Random(size).randbytes(size)
    done = await (await connect(alice)).upload(data, size=None)
    assert await site.content(done["payload"]) == data


async def test_segments_of_odd_lengths_are_read_as_one(
    connect: Connect, site: Site, alice: Person, bob: Person
) -> None:
    """Four connections store a part each, in chunks of another size each; blocks lie across their ends."""
    data = random.Random(7).randbytes(1_500_007)
    transfer = None
    for chunk_size, chunks in ((4_096, 31), (8_192, 40), (65_536, 7)):
        peer = await connect(alice)
        members = {} if transfer is None else {"transfer": transfer}
        handle, transfer = await peer.offer(size=len(data), chunk_size=chunk_size, to=[bob.address], **members)
        accept = await peer.hear("accept")
        size, seq = accept["chunk_size"], accept["seq"]
        for number in range(seq, seq + chunks):
            await peer.chunk(handle, number, data[number * size : (number + 1) * size])
        await peer.settle()
        await peer.socket.close()
    done = await (await connect(alice)).upload(data, transfer=transfer)
    stored = await site.run(lambda: list(Segment.objects.filter(payload=done["payload"])))
    assert len(stored) >= 4
    assert await receive(await connect(bob, receive=True), CHUNK) == data
