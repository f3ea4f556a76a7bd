"""`deliver()` as a site calls it: every kind of source and recipient, transactions, files in place."""

from __future__ import annotations

import datetime
import gc
import io
import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.core.files.base import ContentFile
from django.core.files.storage import storages
from django.db import models, transaction
from django.db.models.fields.files import FieldFile

from delivery import adeliver, deliver, group
from delivery.errors import UsageError
from delivery.models import Payload, Segment, Transfer
from tests.conformance.conftest import Connect
from tests.conformance.peer import Peer, sha256
from tests.stack import Person, Site

MIB = 1024 * 1024
LARGE = bytes(range(256)) * 4096 * 17  # 17 MiB: two segments


async def received(peer: Peer) -> bytes:
    """Take the next delivery."""
    offer = await peer.hear("offer")
    size = offer["chunk_size"]
    count = -(-offer["size"] // size)
    await peer.say("accept", transfer=offer["transfer"], handle=offer["handle"], chunk_size=size, seq=0, limit=count)
    return b"".join([(await peer.hear_chunk(offer["handle"])).data for _ in range(count)])


def pieces() -> Iterator[bytes]:
    yield b"one "
    yield bytearray(b"two ")
    yield b""
    yield b"three"


# -- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected", "content_type"),
    [
        (b"bytes", b"bytes", "application/octet-stream"),
        (b"", b"", "application/octet-stream"),
        (bytearray(b"bytes"), b"bytes", "application/octet-stream"),
        (memoryview(b"bytes"), b"bytes", "application/octet-stream"),
        ("ünïcode", "ünïcode".encode(), "text/plain; charset=utf-8"),
        ("/etc/passwd", b"/etc/passwd", "text/plain; charset=utf-8"),  # text, never a path
        ({"a": [1, None]}, b'{"a": [1, null]}', "application/json"),
        ([1, 2], b"[1, 2]", "application/json"),
        (io.BytesIO(b"file"), b"file", "application/octet-stream"),
        (ContentFile(b"django", name="a.pdf"), b"django", "application/pdf"),
        (LARGE, LARGE, "application/octet-stream"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_sources(site: Site, alice: Person, source: object, expected: bytes, content_type: str) -> None:
    payload = await site.run(deliver, source, alice.address)
    assert (payload.state, payload.size, payload.sha256) == ("complete", len(expected), sha256(expected))
    assert payload.content_type == content_type
    assert await site.content(payload.pk) == expected


async def test_a_path_is_read(site: Site, alice: Person, tmp_path: Path) -> None:
    path = tmp_path / "report.pdf"
    path.write_bytes(LARGE)
    payload = await site.run(deliver, path, alice.address)
    assert (payload.name, payload.content_type) == ("report.pdf", "application/pdf")
    assert await site.content(payload.pk) == LARGE


async def test_an_iterator_is_read(site: Site, alice: Person) -> None:
    payload = await site.run(lambda: deliver(pieces(), alice.address))
    assert await site.content(payload.pk) == b"one two three"


@pytest.mark.parametrize("size", [16 * MIB - 1, 16 * MIB, 16 * MIB + 1, 32 * MIB, 300_001])
async def test_pieces_of_any_length_are_cut_into_segments(site: Site, alice: Person, size: int) -> None:
    data = (LARGE * 2)[:size]

    def uneven() -> Iterator[bytes]:
        yield from (data[start : start + 1_234_567] for start in range(0, size, 1_234_567))

    payload = await site.run(lambda: deliver(uneven(), alice.address))
    assert payload.sha256 == sha256(data)
    assert await site.content(payload.pk) == data
    lengths = await site.run(lambda: [segment.length for segment in payload.segments.order_by("offset")])
    assert lengths == [min(16 * MIB, size - start) for start in range(0, size, 16 * MIB)]


@pytest.mark.parametrize("source", [7, None, [object()], io.StringIO("text"), (n for n in (1, 2))])
async def test_what_cannot_be_delivered_leaves_nothing(site: Site, alice: Person, source: object) -> None:
    before = set(site.stack.payload_folder.rglob("*"))
    with pytest.raises((UsageError, TypeError)):
        await site.run(deliver, source, alice.address)  # type: ignore[arg-type]
    assert set(site.stack.payload_folder.rglob("*")) == before


async def test_a_source_that_fails_half_way_leaves_nothing(site: Site, alice: Person) -> None:
    before = set(site.stack.payload_folder.rglob("*"))

    def broken() -> Iterator[bytes]:
        yield LARGE
        raise OSError("the disk is gone")

    count = await site.run(Payload.objects.count)
    with pytest.raises(OSError, match="the disk is gone"):
        await site.run(lambda: deliver(broken(), alice.address))
    assert set(site.stack.payload_folder.rglob("*")) == before
    assert await site.run(Payload.objects.count) == count


# -- recipients ------------------------------------------------------------------------------------------------------


async def test_recipients_of_every_kind(site: Site, alice: Person, bob: Person) -> None:
    choir = uuid.uuid4().hex
    members = [await site.person(choir) for _ in range(2)]
    carol, dave = await site.person(), await site.person()

    def send() -> Payload:
        users = User.objects.filter(pk__in=[carol.pk, dave.pk])
        return deliver(b"x", [User.objects.get(pk=alice.pk), bob.address, [group(choir)], users, alice.address])

    payload = await site.run(send)
    people = {alice.pk, bob.pk, carol.pk, dave.pk, *(person.pk for person in members)}
    assert await site.run(lambda: {row.user_id for row in payload.deliveries}) == people
    assert await site.run(payload.deliveries.count) == len(people)


@pytest.mark.parametrize("to", ["nobody", "user:0", 7, [object()]])
async def test_somebody_who_does_not_exist_is_refused(site: Site, to: object) -> None:
    with pytest.raises(UsageError):
        await site.run(deliver, b"x", to)


async def test_for_the_site_itself_it_never_expires(site: Site) -> None:
    payload = await site.run(deliver, b"x")
    assert (payload.keep, payload.expires_at) == (True, None)


async def test_expiry_counts_from_completion(site: Site, alice: Person) -> None:
    payload = await site.run(lambda: deliver(b"x", alice.address, expires=datetime.timedelta(hours=1)))
    assert payload.expires_at - payload.completed_at == datetime.timedelta(hours=1)


async def test_a_connected_recipient_gets_it(connect: Connect, site: Site, alice: Person) -> None:
    peer = await connect(alice, receive=True)
    await site.run(deliver, LARGE, alice.address)
    assert await received(peer) == LARGE


async def test_adeliver_does_the_same(connect: Connect, site: Site, alice: Person) -> None:
    peer = await connect(alice, receive=True)
    payload = await adeliver({"a": 1}, alice.address, name="a.json", meta={"k": "v"})
    assert payload.meta == {"k": "v"}
    assert json.loads(await received(peer)) == {"a": 1}


# -- transactions ----------------------------------------------------------------------------------------------------


async def test_a_rollback_leaves_neither_rows_nor_files(connect: Connect, site: Site, alice: Person) -> None:
    peer = await connect(alice, receive=True)

    def fail() -> uuid.UUID:
        with transaction.atomic():
            with pytest.warns(UserWarning, match="inside a transaction"):
                payload = deliver(LARGE, alice.address)
            assert site.stack.files_of(payload.pk)
            transaction.set_rollback(True)
        return payload.pk

    pk = await site.run(fail)
    gc.collect()
    assert site.stack.files_of(pk) == []
    assert not (site.stack.payload_folder / str(pk)).exists()
    assert not await site.run(Payload.objects.filter(pk=pk).exists)
    await peer.settle()
    assert not peer.has_heard("offer")


async def test_a_rolled_back_savepoint_leaves_no_files_either(site: Site, alice: Person) -> None:
    def fail() -> uuid.UUID:
        with transaction.atomic():
            with transaction.atomic():
                payload = deliver(LARGE[: 2 * MIB], alice.address)
                transaction.set_rollback(True)
            kept = deliver(LARGE[:MIB], alice.address)
        assert len(site.stack.files_of(kept.pk)) == 1
        return payload.pk

    pk = await site.run(fail)
    gc.collect()
    assert site.stack.files_of(pk) == []


async def test_recipients_hear_of_it_only_on_commit(connect: Connect, site: Site, alice: Person) -> None:
    peer = await connect(alice, receive=True)

    def send() -> bool:
        with transaction.atomic():
            deliver(b"x", alice.address)
            early = peer.has_heard("offer")
        return early

    assert not await site.run(send)
    await peer.hear("offer")


# -- in place --------------------------------------------------------------------------------------------------------


def field_file(name: str, data: bytes) -> FieldFile:
    """Return a file as a model's FileField gives it, in the site's own storage."""
    storage = storages["default"]
    stored = storage.save(name, ContentFile(data))
    return FieldFile(None, models.FileField(storage=storage), stored)


async def test_a_file_in_a_storage_is_delivered_in_place(connect: Connect, site: Site, alice: Person) -> None:
    peer = await connect(alice, receive=True)
    file = await site.run(field_file, "scans/a.bin", LARGE)
    payload = await site.run(deliver, file, alice.address)
    assert payload.in_place
    assert site.stack.files_of(payload.pk) == []  # nothing was copied
    assert await received(peer) == LARGE
    segment = await site.run(Segment.objects.get, payload=payload)
    assert (segment.storage, segment.name, segment.owned) == ("default", file.name, False)
    await site.run(payload.refresh_from_db)
    assert (payload.state, payload.sha256) == ("complete", sha256(LARGE))


async def test_a_file_in_place_is_never_deleted_by_us(site: Site, alice: Person) -> None:
    from delivery.transfers import cancel_payload

    file = await site.run(field_file, "scans/b.bin", b"precious")
    payload = await site.run(deliver, file, alice.address)
    await site.until(lambda: Payload.objects.get(pk=payload.pk).state == "complete", what="sealed payload")
    assert await site.run(cancel_payload, payload.pk, by="")
    assert await site.run(file.storage.exists, file.name)


async def test_a_file_in_place_that_changes_fails_visibly(connect: Connect, site: Site, alice: Person) -> None:
    file = await site.run(field_file, "scans/c.bin", LARGE)
    payload = await site.run(deliver, file, alice.address)
    await site.until(lambda: Payload.objects.get(pk=payload.pk).state == "complete", what="sealed payload")
    await site.run(lambda: Path(file.path).write_bytes(LARGE[1:] + b"!"))
    peer = await connect(alice, receive=True)
    offer = await peer.hear("offer")
    await peer.say("accept", transfer=offer["transfer"], handle=offer["handle"], chunk_size=4096, seq=0, limit=4)
    abort = await peer.hear("abort", handle=offer["handle"])
    assert abort["final"]
    assert peer.chunks_heard(offer["handle"]) == []
    assert (await site.payload(payload.pk)).state == "failed"


async def test_a_file_in_place_rolls_back(site: Site, alice: Person) -> None:
    file = await site.run(field_file, "scans/d.bin", b"mine")

    def fail() -> None:
        with transaction.atomic():
            deliver(file, alice.address)
            transaction.set_rollback(True)

    await site.run(fail)
    assert not await site.run(Segment.objects.filter(name=file.name).exists)
    assert not await site.run(Transfer.objects.filter(user=alice.pk).exists)
    assert await site.run(file.storage.exists, file.name)


# -- reading ---------------------------------------------------------------------------------------------------------


async def test_open_is_a_seekable_binary_file(site: Site) -> None:
    payload = await site.run(deliver, LARGE)

    def read() -> tuple[bytes, bytes, bytes, int]:
        with payload.open() as file:
            file.seek(16 * MIB - 5)
            across = file.read(10)
            file.seek(-3, io.SEEK_END)
            tail = file.read()
            return across, tail, file.read(), file.seek(0)

    across, tail, nothing, start = await site.run(read)
    assert across == LARGE[16 * MIB - 5 : 16 * MIB + 5]
    assert (tail, nothing, start) == (LARGE[-3:], b"", 0)


async def test_open_refuses_what_is_not_complete(site: Site) -> None:
    payload = await site.run(Payload.objects.create, name="half")
    with pytest.raises(UsageError):
        await site.run(payload.open)
    await site.run(payload.delete)
