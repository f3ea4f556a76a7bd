"""Our tables may be in another database than the default: whatever we do names it.

The default of this site raises at every use.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable

import pytest

from tests.conformance.peer import Peer, sha256
from tests.host_site.conftest import HostRig
from tests.host_site.test_host_site import run
from tests.stack import Site

DATA = random.Random(22).randbytes(5 * 1024 * 1024 + 7)


@pytest.fixture
def rig(new_rig: Callable[..., HostRig]) -> HostRig:
    return new_rig(settings="hostsite.second_database")


async def _receive(peer: Peer) -> bytes:
    offer = await peer.hear("offer")
    handle, data = int(offer["handle"]), b""
    await peer.say(
        "accept", transfer=offer["transfer"], handle=handle, chunk_size=offer["chunk_size"], seq=0, limit=10_000
    )
    while len(data) < offer["size"]:
        data += (await peer.hear_chunk(handle, seconds=30)).data
    await peer.hear("finish", handle=handle)
    await peer.say("done", transfer=offer["transfer"], handle=handle, size=len(data), sha256=sha256(data))
    return data


async def test_payloads_go_through_a_second_database(rig: HostRig, site: Site) -> None:
    """Uploads, large and small, deliveries to two clients, a cancel, the sweep, the end of a user."""
    rig.web().wait_ready()
    rig.worker().wait_ready()
    alice = await site.person()
    async with Peer.open(rig.ws_url, token=alice.token) as peer, Peer.open(rig.ws_url, token=alice.token) as other:
        await peer.hello()
        for data in (DATA, b"small", b""):
            assert (await peer.upload(data))["sha256"] == sha256(data)
        handle, transfer = await peer.offer(size=len(DATA), to=[])
        await peer.hear("accept", handle=handle)
        await peer.say("abort", transfer=transfer, handle=handle, code="cancelled", message="", final=True)
        await other.hello(receive=True, client=f"other-{uuid.uuid4()}")
        code = (
            "from delivery import deliver\n"
            "from django.contrib.auth.models import User\n"
            "import random\n"
            f"user = User.objects.get(pk={alice.pk})\n"
            f"deliver(random.Random(22).randbytes({len(DATA)}), to=user)\n"
        )
        run(rig, code)
        assert await _receive(other) == DATA
        run(rig, f"{code}deliver(b'little', to=user)\n")
        received = {await _receive(other), await _receive(other)}
        assert received == {DATA, b"little"}
    await site.until(lambda: _states(alice.pk) == ["cancelled"] + ["complete"] * 6, what="ends of all transfers")
    run(rig, "from django.core.management import call_command; call_command('delivery_sweep')")
    run(rig, f"from django.contrib.auth.models import User; User.objects.get(pk={alice.pk}).delete()")
    assert not await site.run(_rows_of, alice.pk)


def _states(user: int) -> list[str]:
    from delivery.models import Payload, Transfer

    live = Transfer.objects.filter(user=user, direction="delivery", state="live").exists()
    return [] if live else sorted(Payload.objects.values_list("state", flat=True))


def _rows_of(user: int) -> bool:
    from delivery.models import Transfer

    return Transfer.objects.filter(user=user).exists()
