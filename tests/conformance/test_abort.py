"""PROTOCOL section 5, ending early: for good, or only on this connection."""

from __future__ import annotations

import functools

import pytest

from delivery import transfers
from tests.conformance.conftest import Connect
from tests.conformance.peer import CHUNK, Peer
from tests.stack import Person, Site, WebProcess

DATA = bytes(3 * CHUNK)


@pytest.fixture
def connect(connect: Connect, quick: WebProcess) -> Connect:
    """Connect to the server whose segments are so small that every chunk is stored at once."""
    return functools.partial(connect, url=quick.ws_url)


async def one_chunk_stored(peer: Peer, **members: object) -> tuple[int, str]:
    handle, transfer = await peer.offer(**{"size": len(DATA)} | members)
    await peer.hear("accept", handle=handle)
    await peer.chunk(handle, 0, bytes(CHUNK))
    await peer.hear_ack(handle, 1)
    return handle, transfer


async def test_a_final_abort_frees_what_was_held(peer: Peer, site: Site) -> None:
    handle, transfer = await one_chunk_stored(peer)
    row = await site.upload_row(transfer)
    assert site.stack.files_of(row.payload_id)
    await peer.say("abort", transfer=transfer, handle=handle, code="cancelled", message="no more", final=True)
    await site.until(lambda: not site.stack.files_of(row.payload_id), what="freed files")
    assert (await site.payload(row.payload_id)).state == "cancelled"
    assert not (site.stack.payload_folder / str(row.payload_id)).exists()
    await peer.offer(transfer=transfer, size=len(DATA))
    assert (await peer.hear("reject"))["code"] == "cancelled"


async def test_an_abort_that_is_not_final_keeps_what_was_taken_in(peer: Peer) -> None:
    handle, transfer = await one_chunk_stored(peer)
    await peer.chunk(handle, 1, bytes(CHUNK))
    await peer.say("abort", transfer=transfer, handle=handle, code="paused", message="", final=False)
    await peer.chunk(handle, 2, bytes(CHUNK))  # of a handle that is no longer live: dropped
    await peer.offer(transfer=transfer, size=len(DATA))
    accept = await peer.hear("accept")
    assert (accept["seq"], accept["chunk_size"]) == (2, CHUNK)
    await peer.send_from(DATA, accept)
    await peer.hear("done")


async def test_an_abort_before_the_answer_is_taken(peer: Peer) -> None:
    handle, transfer = await peer.offer(size=len(DATA))
    await peer.say("abort", transfer=transfer, handle=handle, code="paused", message="", final=False)
    await peer.upload(DATA, transfer=transfer)


async def test_a_final_abort_before_the_answer_ends_it(peer: Peer, site: Site) -> None:
    handle, transfer = await peer.offer(size=len(DATA))
    await peer.say("abort", transfer=transfer, handle=handle, code="cancelled", message="", final=True)
    await peer.settle()
    await peer.offer(transfer=transfer, size=len(DATA))
    assert (await peer.hear("reject"))["code"] == "cancelled"


async def test_a_cancel_by_the_site_reaches_the_sender(peer: Peer, site: Site) -> None:
    handle, transfer = await one_chunk_stored(peer)
    row = await site.upload_row(transfer)
    assert await site.run(transfers.cancel_payload, row.payload_id, by="user:1")
    abort = await peer.hear("abort", handle=handle, transfer=transfer)
    assert (abort["code"], abort["final"]) == ("cancelled", True)
    await site.until(lambda: not site.stack.files_of(row.payload_id), what="freed files")


async def test_expiry_reaches_the_sender(peer: Peer, site: Site) -> None:
    handle, transfer = await one_chunk_stored(peer)
    row = await site.upload_row(transfer)
    await site.run(transfers.expire_payload, row.payload_id, by="")
    abort = await peer.hear("abort", handle=handle, transfer=transfer)
    assert (abort["code"], abort["final"]) == ("expired", True)
    await peer.offer(transfer=transfer, size=len(DATA))
    assert (await peer.hear("reject"))["code"] == "expired"


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
async def test_transfers_outlive_every_close_code(connect: Connect, alice: Person, code: int) -> None:
    first = await connect(alice)
    _, transfer = await one_chunk_stored(first)
    await first.socket.close(code)
    second = await connect(alice)
    await second.offer(transfer=transfer, size=len(DATA))
    assert (await second.hear("accept"))["seq"] == 1


async def test_the_close_code_is_written_down(connect: Connect, alice: Person, site: Site) -> None:
    peer = await connect(alice)
    _, transfer = await one_chunk_stored(peer)
    await peer.socket.close(1001)
    row = await site.upload_row(transfer)

    def detached() -> bool:
        row.refresh_from_db()
        return row.waiting_for == "client"

    await site.until(detached, what="detached upload")
    assert row.last_close_code == 1001
    assert row.channel == ""
