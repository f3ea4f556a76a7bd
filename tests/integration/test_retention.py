"""The sweep: what has expired goes, with its files; what nobody names is found."""

from __future__ import annotations

import datetime
import os
import shutil
import time
import uuid

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import storages
from django.utils import timezone

from delivery import deliver
from delivery.errors import StorageUnavailable
from delivery.models import Event, Payload, Segment, SweepMark, Transfer
from delivery.storage import files
from delivery.transfers import cancel_transfer, cleanup
from tests.conformance.conftest import Connect
from tests.conformance.peer import CHUNK, Peer
from tests.stack import Person, Site

DAY = datetime.timedelta(days=1)
DATA = bytes(300_000)


async def stored_chunk(peer: Peer, **members: object) -> tuple[int, str]:
    """Have one chunk of an upload stored."""
    handle, transfer = await peer.offer(**{"size": 3 * CHUNK} | members)
    await peer.hear("accept")
    await peer.chunk(handle, 0, bytes(CHUNK))
    await peer.settle()
    return handle, transfer


async def test_a_payload_expires_with_its_files(site: Site, alice: Person) -> None:
    payload = await site.run(lambda: deliver(DATA, alice.address, expires=datetime.timedelta(seconds=-1)))
    assert site.stack.files_of(payload.pk)
    await site.run(cleanup.sweep)
    row = await site.payload(payload.pk)
    assert row.state == "expired"
    assert not (site.stack.payload_folder / str(payload.pk)).exists()
    assert not await site.run(Segment.objects.filter(payload=payload).exists)
    assert await site.run(lambda: [one.state for one in row.deliveries]) == ["expired"]


async def test_an_expired_payload_is_not_offered_even_before_the_sweep(
    connect: Connect, site: Site, alice: Person
) -> None:
    await site.run(lambda: deliver(b"x", alice.address, expires=datetime.timedelta(seconds=-1)))
    peer = await connect(alice, receive=True)
    await peer.settle()
    assert not peer.has_heard("offer")


async def test_payloads_that_have_time_left_stay(site: Site, alice: Person) -> None:
    kept = await site.run(deliver, DATA)
    waiting = await site.run(deliver, DATA, alice.address)
    await site.run(cleanup.sweep)
    for payload in (kept, waiting):
        assert (await site.payload(payload.pk)).state == "complete"
        assert site.stack.files_of(payload.pk)


async def test_an_unfinished_upload_expires_after_its_last_progress(
    connect: Connect, site: Site, alice: Person
) -> None:
    peer = await connect(alice)
    _, transfer = await stored_chunk(peer)
    await peer.socket.close()
    row = await site.upload_row(transfer)
    await site.until(lambda: Transfer.objects.get(pk=row.pk).position, what="stored chunk")
    await site.run(Transfer.objects.filter(pk=row.pk).update, expires_at=timezone.now())
    await site.run(cleanup.sweep)
    assert (await site.payload(row.payload_id)).state == "expired"
    await site.until(lambda: not site.stack.files_of(row.payload_id), what="freed files")
    again = await connect(alice)
    await again.offer(transfer=transfer, size=3 * CHUNK)
    assert (await again.hear("reject"))["code"] == "expired"


async def test_files_without_rows_of_an_ended_upload_are_deleted(connect: Connect, site: Site, alice: Person) -> None:
    done = await (await connect(alice)).upload(DATA)
    (good,) = site.stack.files_of(done["payload"])

    def leave_orphan() -> str:
        Transfer.objects.filter(payload=done["payload"], direction="upload").update(
            ended_at=timezone.now() - datetime.timedelta(minutes=5)
        )
        return storages["delivery"].save(f"{done['payload']}/0-1-orphan", ContentFile(b"left behind"))

    await site.run(SweepMark.objects.all().delete)
    await site.run(leave_orphan)
    assert len(site.stack.files_of(done["payload"])) == 2
    await site.run(cleanup.sweep)
    assert site.stack.files_of(done["payload"]) == [good]


async def test_files_without_rows_are_found_however_long_nobody_swept(
    connect: Connect, site: Site, alice: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are searched for in the order in which uploads ended; where Storage is away, the next sweep goes on there."""
    ends = [timezone.now() - age * DAY for age in (30, 5)]
    uploads = [await (await connect(alice)).upload(DATA) for _ in ends]

    def leave_orphans() -> None:
        SweepMark.objects.all().delete()
        for done, end in zip(uploads, ends, strict=True):
            Transfer.objects.filter(payload=done["payload"], direction="upload").update(ended_at=end)
            storages["delivery"].save(f"{done['payload']}/0-1-orphan", ContentFile(b"left behind"))

    def orphans() -> int:
        return sum(len(site.stack.files_of(done["payload"])) - 1 for done in uploads)

    def refuse(_alias: str, _payload: uuid.UUID) -> list[str]:
        raise StorageUnavailable("away")

    await site.run(leave_orphans)
    with monkeypatch.context() as patched:
        patched.setattr(files, "names", refuse)
        await site.run(cleanup.sweep)
    assert orphans() == 2
    await site.run(cleanup.sweep)
    assert orphans() == 0


async def test_folders_of_the_sites_own_in_a_shared_storage_are_left_alone(site: Site) -> None:
    theirs = site.stack.payload_folder / str(uuid.uuid4())
    theirs.mkdir()
    path = theirs / "photo.jpg"
    path.write_bytes(DATA)
    yesterday = time.time() - 2 * DAY.total_seconds()
    os.utime(path, (yesterday, yesterday))
    await site.run(cleanup.delete_lost)
    assert path.exists()
    shutil.rmtree(theirs)


async def test_files_that_nobody_deleted_when_their_payload_ended_are_deleted(
    site: Site, alice: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storage was away then, or the process was killed between its commit and the deletion."""
    payload = await site.run(deliver, DATA, alice.address)
    with monkeypatch.context() as patched:
        patched.setattr(files, "delete", lambda _alias, _name: False)
        await site.run(payload.discard)
    assert site.stack.files_of(payload.pk)
    await site.run(cleanup.delete_lost)
    assert not (site.stack.payload_folder / str(payload.pk)).exists()


async def test_a_step_of_the_sweep_that_fails_keeps_none_of_the_others(
    site: Site, alice: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = await site.run(lambda: deliver(DATA, alice.address, expires=datetime.timedelta(seconds=-1)))
    event = await site.run(Event.objects.create, at=timezone.now() - 31 * DAY, kind="test")

    def fail(*_arguments: object) -> list[str]:
        raise LookupError("a storage of the site's own")

    monkeypatch.setattr(files, "names", fail)
    await site.run(SweepMark.objects.all().delete)
    with pytest.raises(LookupError):
        await site.run(cleanup.sweep)
    assert (await site.payload(payload.pk)).state == "expired"
    assert not await site.run(Event.objects.filter(pk=event.pk).exists)


async def test_files_of_a_live_upload_are_left_alone(connect: Connect, site: Site, alice: Person) -> None:
    peer = await connect(alice)
    _, transfer = await stored_chunk(peer)
    row = await site.upload_row(transfer)
    await site.run(storages["delivery"].save, f"{row.payload_id}/0-9-being-written", ContentFile(b"soon a segment"))
    assert await site.run(cleanup.delete_orphans, row.payload_id) == 0
    assert site.stack.files_of(row.payload_id)


async def test_a_payload_that_nobody_seals_is_sealed_by_the_sweep(connect: Connect, site: Site, alice: Person) -> None:
    payload = await site.run(deliver, DATA, alice.address)

    def unseal() -> None:
        Payload.objects.filter(pk=payload.pk).update(
            state="sealing", sealer="somebody dead", sealing_at=timezone.now() - datetime.timedelta(minutes=1)
        )

    await site.run(unseal)
    await site.run(cleanup.sweep)
    await site.until(lambda: Payload.objects.get(pk=payload.pk).state == "complete", what="sealed payload")


async def test_old_events_are_forgotten(site: Site) -> None:
    event = await site.run(Event.objects.create, at=timezone.now() - 31 * DAY, kind="test")
    young = await site.run(Event.objects.create, at=timezone.now() - 29 * DAY, kind="test")
    await site.run(cleanup.sweep)
    assert not await site.run(Event.objects.filter(pk=event.pk).exists)
    assert await site.run(Event.objects.filter(pk=young.pk).exists)


async def test_cancelling_a_delivery_ends_it_for_one_user(
    connect: Connect, site: Site, alice: Person, bob: Person
) -> None:
    payload = await site.run(deliver, DATA, [alice.address, bob.address])
    peers = [await connect(person, receive=True) for person in (alice, bob)]
    offers = [await peer.hear("offer") for peer in peers]
    for peer, offer in zip(peers, offers, strict=True):
        await peer.say("accept", transfer=offer["transfer"], handle=offer["handle"], chunk_size=4096, seq=0, limit=1)
        await peer.hear_chunk(offer["handle"])
    row = await site.run(payload.deliveries.get, user=alice.pk)
    assert await site.run(cancel_transfer, row.pk, by="user:1")
    assert (await peers[0].hear("abort"))["code"] == "cancelled"
    await peers[1].settle()
    assert not peers[1].has_heard("abort")
    assert (await site.payload(payload.pk)).state == "complete"


async def test_files_of_a_payload_that_never_got_a_row_are_deleted_a_day_later(site: Site) -> None:
    lost, fresh, empty = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    folder = site.stack.payload_folder
    for payload in (lost, fresh):
        (folder / str(payload)).mkdir()
        (folder / str(payload) / "0-0-abc").write_bytes(DATA)
    yesterday = time.time() - 2 * DAY.total_seconds()
    os.utime(folder / str(lost) / "0-0-abc", (yesterday, yesterday))
    (folder / str(empty)).mkdir()  # by a task that came too late
    os.utime(folder / str(empty), (yesterday, yesterday))
    assert await site.run(cleanup.delete_lost) == 1
    assert not (folder / str(lost)).exists()
    assert not (folder / str(empty)).exists()
    assert (folder / str(fresh) / "0-0-abc").exists()
    shutil.rmtree(folder / str(fresh))
