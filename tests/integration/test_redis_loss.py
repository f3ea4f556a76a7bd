"""Every byte in Redis is expendable: what was lost there is sent, or staged, again."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import pytest

from tests.conformance.conftest import Connect
from tests.conformance.peer import CHUNK, sha256
from tests.integration.conftest import OpenClient
from tests.stack import Person, Site, Stack, wait_until

MIB = 1024 * 1024
DATA = random.Random(4).randbytes(20 * MIB + 3)
WHOLE = DATA[: 5 * CHUNK]


@pytest.fixture(autouse=True)
def workers_are_known_again(shipped: Stack) -> Iterator[None]:
    """Leave a Redis in which the worker has said again that it lives; until then, offers are told `busy`."""
    yield
    with contextlib.closing(shipped.redis()) as client:
        wait_until(lambda: list(client.scan_iter("delivery:*workers*")), what="worker's lease")


async def test_chunks_that_are_lost_before_they_were_stored_are_asked_for_again(
    connect: Connect, site: Site, alice: Person, shipped: Stack
) -> None:
    peer = await connect(alice)
    handle, transfer = await peer.offer(size=len(WHOLE))
    accept = await peer.hear("accept")
    for seq in range(3):
        await peer.chunk(handle, seq, WHOLE[seq * CHUNK : (seq + 1) * CHUNK])
    row = await site.upload_row(transfer)
    await site.until(lambda: shipped.buffered(row.payload_id) == 3, what="buffered chunks")
    shipped.flush_redis()
    nack = await peer.hear("nack", handle=handle, seconds=10)
    assert (nack["seq"], nack["code"]) == (0, "lost")
    await peer.send_from(WHOLE, accept)
    done = await peer.hear("done")
    assert await site.content(done["payload"]) == WHOLE


async def test_finish_is_repeated_after_chunks_were_lost(
    connect: Connect, site: Site, alice: Person, shipped: Stack
) -> None:
    peer = await connect(alice)
    handle, transfer = await peer.offer(size=len(WHOLE))
    accept = await peer.hear("accept")
    for seq in range(4):
        await peer.chunk(handle, seq, WHOLE[seq * CHUNK : (seq + 1) * CHUNK])
    row = await site.upload_row(transfer)
    await site.until(lambda: shipped.buffered(row.payload_id) == 4, what="buffered chunks")
    shipped.flush_redis()
    await peer.chunk(handle, 4, WHOLE[4 * CHUNK :])
    await peer.say("finish", handle=handle, chunks=5, size=len(WHOLE), sha256=sha256(WHOLE))
    nack = await peer.hear("nack", handle=handle, code="lost")
    await peer.send_from(WHOLE, accept | {"seq": nack["seq"]})
    done = await peer.hear("done")
    assert await site.content(done["payload"]) == WHOLE


async def test_what_is_acked_is_never_asked_for_again(connect: Connect, alice: Person, shipped: Stack) -> None:
    peer = await connect(alice)
    handle, _ = await peer.offer(size=len(DATA))
    await peer.hear("accept")
    for seq in range(72):
        await peer.chunk(handle, seq, DATA[seq * CHUNK : (seq + 1) * CHUNK])
    acked = (await peer.hear_ack(handle, 64))["seq"]
    shipped.flush_redis()
    nack = await peer.hear("nack", handle=handle)
    assert nack["seq"] >= acked >= 64


async def test_an_upload_survives_several_flushes(
    open_client: OpenClient, site: Site, alice: Person, shipped: Stack
) -> None:
    client = await open_client(alice)
    flushed = []

    def flush(progress: object) -> None:
        received = progress.received  # type: ignore[attr-defined]
        if received > (len(flushed) + 1) * 5 * MIB:
            flushed.append(received)
            shipped.flush_redis()

    receipt = await client.send(DATA, progress=flush)
    assert flushed
    assert receipt.sha256 == sha256(DATA)
    assert await site.content(receipt.payload) == DATA


async def test_a_delivery_survives_a_flush(connect: Connect, alice: Person, bob: Person, shipped: Stack) -> None:
    await (await connect(alice)).upload(DATA, to=[bob.address])
    peer = await connect(bob, receive=True)
    offer = await peer.hear("offer")
    handle = offer["handle"]
    await peer.say("accept", transfer=offer["transfer"], handle=handle, chunk_size=CHUNK, seq=0, limit=2)
    received = [(await peer.hear_chunk(handle)).data for _ in range(2)]
    shipped.flush_redis()
    await peer.say("ack", handle=handle, seq=2, received=2, limit=2**20)
    received += [(await peer.hear_chunk(handle, seconds=15)).data for _ in range(79)]
    assert b"".join(received) == DATA


async def test_a_subscription_survives_a_flush(connect: Connect, alice: Person, bob: Person, shipped: Stack) -> None:
    peer = await connect(bob, receive=True)
    await peer.settle()
    shipped.flush_redis()
    done = await (await connect(alice)).upload(b"still there?", to=[bob.address])
    assert (await peer.hear("offer"))["payload"] == done["payload"]
