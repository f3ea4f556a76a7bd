"""A stored file that is gone, through real parts: recipients are told once, and get it once it is back and revived."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from delivery import deliver
from delivery.models import MissingFile, Payload
from delivery.transfers import missing_files
from tests.conformance.conftest import Connect
from tests.conformance.peer import Peer, sha256
from tests.stack import Person, Site

DATA = bytes(range(256)) * 1200  # too large to be inline, two blocks


def _try_all(payload: Payload) -> None:
    """Have the sweep try as often as it takes, as if ten minutes had gone by."""
    rows = MissingFile.objects.filter(pk=payload.pk)
    for _ in range(missing_files.LEAST_TRIES):
        rows.update(
            since=timezone.now() - datetime.timedelta(minutes=11),
            tried_at=timezone.now() - datetime.timedelta(minutes=2),
        )
        missing_files.try_due()


@pytest.fixture
async def stored(site: Site, alice: Person, tmp_path: Path) -> tuple[Payload, Path, Path]:
    """A payload for alice whose file was moved away: the payload, where its file was, where it is."""
    await site.run(deliver, DATA)  # a neighbour, which stays
    payload = await site.run(deliver, DATA, alice.address)
    (path,) = site.stack.files_of(payload.pk)
    aside = path.rename(tmp_path / "aside")
    return payload, path, aside


async def _receive(peer: Peer, offer: dict[str, object]) -> bytes:
    size = int(str(offer["chunk_size"]))
    await peer.say("accept", transfer=offer["transfer"], handle=offer["handle"], chunk_size=size, seq=0, limit=100)
    data = b""
    while len(data) < len(DATA):
        data += (await peer.hear_chunk(int(str(offer["handle"])))).data
    await peer.hear("finish", handle=offer["handle"])
    await peer.say("done", transfer=offer["transfer"], handle=offer["handle"], size=len(data), sha256=sha256(data))
    return data


async def test_recipients_are_told_once_and_receive_it_after_it_was_revived(
    connect: Connect, site: Site, alice: Person, stored: tuple[Payload, Path, Path]
) -> None:
    payload, path, aside = stored
    peer = await connect(alice, receive=True)
    offer = await peer.hear("offer")
    await peer.say(
        "accept", transfer=offer["transfer"], handle=offer["handle"], chunk_size=offer["chunk_size"], seq=0, limit=100
    )
    await site.until(lambda: MissingFile.objects.filter(pk=payload.pk).exists(), what="missing file")
    await site.run(_try_all, payload)
    abort = await peer.hear("abort", final=True)
    assert (abort["transfer"], abort["code"]) == (offer["transfer"], "digest")
    assert (await site.payload(payload.pk)).state == "failed"
    await peer.settle()
    assert not peer.has_heard("abort", final=True)
    aside.rename(path)
    assert await site.run(_revive_in_admin, payload) == 302
    again = await peer.hear("offer")
    assert await _receive(peer, again) == DATA
    await site.until(lambda: not payload.deliveries.exclude(state="done").exists(), what="delivery")
    assert (await site.payload(payload.pk)).state == "complete"


def _revive_in_admin(payload: Payload) -> int:
    """Press the button as somebody would who may do no more than see payloads and revive them."""
    operator = User.objects.create_user(f"operator-{payload.pk}", is_staff=True)

    operator.user_permissions.set(Permission.objects.filter(codename__in=["view_payload", "revive_payload"]))
    client = Client()
    client.force_login(operator)
    fields = {"action": "revive_payloads", "_selected_action": str(payload.pk), "confirmed": "yes"}
    return int(client.post(reverse("admin:delivery_payload_changelist"), fields).status_code)


async def test_an_upload_whose_segment_is_gone_ends_for_its_sender(connect: Connect, site: Site, alice: Person) -> None:
    """Its bytes were acked, so that it can't be sent again: it fails visibly."""
    peer = await connect(alice)
    data = DATA * 4
    handle, transfer = await peer.offer(size=len(data))
    accept = await peer.hear("accept")
    chunk = int(accept["chunk_size"])
    await peer.chunk(handle, 0, data[:chunk])
    row = await site.upload_row(transfer)
    await site.until(lambda: site.stack.files_of(row.payload_id), what="stored segment")
    await peer.hear_ack(handle, 1)
    for path in site.stack.files_of(row.payload_id):
        path.unlink()
    for seq in range(1, -(-len(data) // chunk)):
        await peer.chunk(handle, seq, data[seq * chunk : (seq + 1) * chunk])
    await peer.say("finish", handle=handle, chunks=-(-len(data) // chunk), size=len(data), sha256=sha256(data))
    await site.until(lambda: MissingFile.objects.filter(pk=row.payload_id).exists(), what="missing file")
    await site.run(_try_all, await site.payload(row.payload_id))
    assert (await peer.hear("abort", final=True))["code"] == "digest"
