"""Several transfers at once: on one socket, on several, in several processes."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from delivery.models import Transfer
from tests.conformance.conftest import Connect
from tests.conformance.peer import CHUNK, Peer, sha256
from tests.integration.conftest import OpenClient
from tests.stack import Person, Site, WebProcess

MIB = 1024 * 1024


async def test_a_small_message_passes_between_the_chunks_of_a_large_one(
    connect: Connect, site: Site, alice: Person
) -> None:
    peer = await connect(alice)
    large = random.Random(1).randbytes(12 * MIB)
    handle, _ = await peer.offer(size=len(large))
    accept = await peer.hear("accept")
    half = len(large) // CHUNK // 2
    for seq in range(half):
        await peer.chunk(handle, seq, large[seq * CHUNK : (seq + 1) * CHUNK])
    small = await peer.upload(b"urgent")
    assert not peer.has_heard("done", handle=handle)
    await peer.send_from(large, accept | {"seq": half})
    done = await peer.hear("done", handle=handle)
    assert await site.content(small["payload"]) == b"urgent"
    assert await site.content(done["payload"]) == large


async def test_many_uploads_on_one_socket(open_client: OpenClient, site: Site, alice: Person) -> None:
    client = await open_client(alice)
    payloads = [random.Random(size).randbytes(size) for size in (0, 10, 70_000, 300_000, 3 * MIB, 9 * MIB)] * 2
    receipts = await asyncio.gather(*(client.send(data) for data in payloads))
    assert [receipt.sha256 for receipt in receipts] == [sha256(data) for data in payloads]
    assert len({receipt.payload for receipt in receipts}) == len(payloads)
    assert await site.content(receipts[5].payload) == payloads[5]


async def test_many_recipients_of_one_payload(open_client: OpenClient, site: Site, alice: Person) -> None:
    people = [await site.person() for _ in range(6)]
    clients = [await open_client(person, receive=True) for person in people]
    data = random.Random(5).randbytes(9 * MIB + 1)
    sender = await open_client(alice)

    async def receive(client: object) -> bytes:
        async for incoming in client.deliveries():  # type: ignore[attr-defined]
            return bytes(await incoming.read())
        raise AssertionError("closed")

    receipt, *received = await asyncio.gather(
        sender.send(data, to=[person.address for person in people]), *(receive(client) for client in clients)
    )
    assert all(one == data for one in received)
    rows = Transfer.objects.filter(payload=receipt.payload, direction="delivery")
    await site.until(lambda: {row.state for row in rows.all()} == {"done"}, what="deliveries done")


async def test_a_payload_goes_from_one_web_process_to_another(
    connect: Connect, quick: WebProcess, alice: Person, bob: Person
) -> None:
    recipient = await connect(bob, url=quick.ws_url, receive=True)
    done = await (await connect(alice)).upload(bytes(MIB), to=[bob.address])
    offer = await recipient.hear("offer", seconds=2)
    assert offer["payload"] == done["payload"]


async def test_a_connection_to_another_process_takes_over(
    connect: Connect, site: Site, quick: WebProcess, alice: Person
) -> None:
    data = random.Random(9).randbytes(MIB)
    first = await connect(alice, client="c")
    handle, transfer = await first.offer(size=len(data))
    await first.hear("accept")
    await first.chunk(handle, 0, data[:CHUNK])
    row = await site.upload_row(transfer)
    await site.until(lambda: site.stack.buffered(row.payload_id) == 1, what="buffered chunk")
    second = await connect(alice, client="c", url=quick.ws_url)
    await second.offer(transfer=transfer, size=len(data))
    accept = await second.hear("accept")
    assert accept["seq"] == 1  # what the other process had taken in is stored
    abort = await first.hear("abort", handle=handle)
    assert abort["code"] == "taken_over"
    await second.send_from(data, accept)
    done = await second.hear("done")
    assert await site.content(done["payload"]) == data


async def test_a_slow_recipient_delays_nobody(connect: Connect, site: Site, alice: Person, bob: Person) -> None:
    data = random.Random(11).randbytes(20 * MIB)
    sender = await connect(alice)
    slow, fast = await connect(alice, receive=True), await connect(bob, receive=True)
    await sender.upload(data, to=[alice.address, bob.address])
    offers = [await slow.hear("offer"), await fast.hear("offer")]
    for peer, offer, limit in ((slow, offers[0], 1), (fast, offers[1], 80)):
        await peer.say(
            "accept",
            transfer=offer["transfer"],
            handle=offer["handle"],
            chunk_size=CHUNK,
            seq=0,
            limit=limit,
        )
    received = b"".join([(await fast.hear_chunk(offers[1]["handle"])).data for _ in range(80)])
    assert received == data
    assert await _only_first(slow, offers[0]["handle"])


async def _only_first(peer: Peer, handle: int) -> bool:
    await peer.hear_chunk(handle)
    await peer.settle()
    return peer.chunks_heard(handle) == []


def cpu_seconds(pid: int) -> float:
    """Return how much processor time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processor times from /proc")
@pytest.mark.parametrize(("size", "chunk_size"), [(MIB, CHUNK), (8_192, 4_096)], ids=["stored", "inline"])
async def test_a_peer_that_does_not_read_keeps_nobody_busy(
    connect: Connect, site: Site, alice: Person, bob: Person, size: int, chunk_size: int
) -> None:
    await (await connect(bob)).upload(random.Random(12).randbytes(32 * MIB), to=[alice.address])
    peer = await connect(alice, receive=True)
    offer = await peer.hear("offer")
    handle, transfer = await peer.offer(size=size, chunk_size=chunk_size)
    await peer.hear("accept")
    peer.socket.transport.pause_reading()
    await peer.say("accept", transfer=offer["transfer"], handle=offer["handle"], chunk_size=CHUNK, seq=0, limit=2**20)
    await peer.chunk(handle, 0, bytes(chunk_size))
    rows = Transfer.objects.filter(key=transfer)
    await site.until(lambda: rows.get().position == chunk_size, what="stored chunk, whose ack cannot be sent")
    (web,) = site.stack.pids()["web"]
    before = cpu_seconds(web)
    await asyncio.sleep(1.0)  # nothing is waited for: this is the time that is measured
    used = cpu_seconds(web) - before
    peer.socket.transport.resume_reading()
    assert used < 0.3
    await peer.hear_ack(handle, 1)


async def test_small_messages_reach_all_processes_once(
    connect: Connect, quick: WebProcess, alice: Person, bob: Person
) -> None:
    """In the sender's process a message is handed over at once; the event that tells the others comes there as well."""
    here = await connect(bob, receive=True, client="here")
    there = await connect(bob, url=quick.ws_url, receive=True, client="there")
    sender = await connect(alice)
    sent = [
        (await sender.upload(bytes([number]) * size, to=[bob.address]))["payload"]
        for number, size in enumerate((1, 20_000, 1000))
    ]
    for peer in (here, there):
        offers = [await peer.hear("offer", seconds=2) for _ in sent]
        assert sorted(offer["payload"] for offer in offers) == sorted(sent)
        for offer in offers:
            await peer.say("reject", transfer=offer["transfer"], handle=offer["handle"], code="busy")
    await asyncio.sleep(0.3)
    assert not here.has_heard("offer", handle=4)
    assert not there.has_heard("offer", handle=4)
