"""A connection with many transfers is cut: each is let go of, whatever happens to the others meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from delivery.models import Transfer
from tests.conformance.peer import Peer, new_id
from tests.server.many_settings import MOST_LIVE
from tests.stack import Site, Stack, WebProcess

CHUNK = 4_096
SIZE = 64 * CHUNK + 65_536  # more than is kept in a row
SECONDS = 30.0


@pytest.fixture(scope="module")
def patient(shipped: Stack) -> Iterator[WebProcess]:
    process = WebProcess(shipped, "tests.server.many_settings")
    try:
        yield process
    finally:
        process.stop()


async def begin(peer: Peer, transfers: Sequence[str], *, chunk: bool) -> list[int]:
    """Offer uploads, a few at a time; have each accepted, and its first chunk sent."""
    handles = []
    for at in range(0, len(transfers), 16):
        batch = [(await peer.offer(transfer=one, size=SIZE, chunk_size=CHUNK))[0] for one in transfers[at : at + 16]]
        for handle in batch:
            accept = await peer.hear("accept", handle=handle, seconds=SECONDS)
            if chunk:
                await peer.chunk(handle, accept["seq"], bytes(CHUNK))
        handles += batch
    return handles


async def test_all_transfers_of_a_cut_connection_are_let_go_of(patient: WebProcess, site: Site) -> None:
    person = await site.person()
    transfers = [new_id() for _ in range(MOST_LIVE)]
    async with Peer.open(patient.ws_url, token=person.token) as peer:
        await peer.hello()
        await begin(peer, transfers, chunk=True)
        await peer.settle()
        await peer.cut()
    held = Transfer.objects.filter(key__in=transfers).exclude(channel="")
    await site.until(lambda: held.count() == 0, what="end of every hold", seconds=SECONDS)
    assert "Traceback" not in patient.log()


async def test_transfers_taken_over_while_their_connection_is_let_go_of(patient: WebProcess, site: Site) -> None:
    """Those that the next connection takes leave the tables of the old one in the middle of its end."""
    person = await site.person()
    transfers, client = [new_id() for _ in range(64)], new_id()
    for _ in range(5):
        async with Peer.open(patient.ws_url, token=person.token) as peer:
            await peer.hello(client=client)
            await begin(peer, transfers, chunk=True)
            await peer.cut()
    held = Transfer.objects.filter(key__in=transfers).exclude(channel="")
    await site.until(lambda: held.count() == 0, what="end of every hold", seconds=SECONDS)
    assert "Traceback" not in patient.log(), patient.log()[-3000:]
