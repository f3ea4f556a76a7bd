"""A web process goes away (PROTOCOL section 6): every socket whose peer reads gets 1001, and it ends in time."""

from __future__ import annotations

import asyncio
import signal
import time

from tests.conformance.peer import Peer
from tests.going_away.conftest import Connect
from tests.going_away.rig import WEB_GRACE_SECONDS, Rig
from tests.stack import Person, Site


async def test_fifty_sockets_are_told_and_spread(rig: Rig, alice: Person, connect: Connect) -> None:
    web = rig.web()
    web.wait_ready()
    peers = await asyncio.gather(*(connect() for _ in range(50)))
    web.send(signal.SIGTERM)
    closes = await asyncio.gather(*(peer.closes() for peer in peers))
    assert set(closes) == {(1001, "going away")}
    told = [await peer.hear("going_away") for peer in peers]
    assert {message["reason"] for message in told} == {"server_draining"}
    waits = [message["retry_after"] for message in told]
    assert all(0 <= wait <= 2 for wait in waits)
    assert max(waits) - min(waits) > 0.5
    status, seconds = await web.ends(within=WEB_GRACE_SECONDS)
    print(f"50 sockets: exit after {seconds:.2f} s")
    assert status == 0
