"""A payload becomes the file of a model's field: without a copy where it can, else composed by a task."""

from __future__ import annotations

import datetime
import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from delivery import conf, deliver
from delivery.errors import IntegrityError, UsageError
from tests.commits import lost_at_commit

SEGMENT = 16 * 1024 * 1024
SMALL, MEDIUM, LARGE = b"inline", b"m" * 1_000_000, b"l" * (SEGMENT + 1_000_000)


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """What the site's own code raises is logged, here on purpose."""
    caplog.set_level(logging.CRITICAL, "delivery.transfers.attachments")


def new_scan() -> Any:
    from tests.site_sockets.shelf.models import Scan

    return Scan.objects.create(title="scan")


def again(instance: Any) -> Any:
    return type(instance).objects.get(pk=instance.pk)


def content(file: Any) -> bytes:
    with file.open("rb") as opened:
        return bytes(opened.read())


def compose_all() -> None:
    """Do what is ordered, as the task does, in this process."""
    from delivery.models import Attachment
    from delivery.transfers import attachments

    for row in list(Attachment.objects.all()):
        attachments.compose(row.pk)


def without_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the task lost on its way."""
    from delivery.transfers import attachments

    monkeypatch.setattr(attachments, "_publish", lambda pk: None)


def everything_due() -> None:
    from delivery.models import Attachment

    Attachment.objects.update(due_at=timezone.now() - datetime.timedelta(seconds=1))


# -- without a copy ------------------------------------------------------------------------------------------------


async def test_a_single_file_in_the_fields_storage_is_handed_over(site):
    def attach() -> None:
        scan, payload = new_scan(), deliver(MEDIUM, name="scan.tif")
        (segment,) = payload.segments.all()
        payload.attach(scan, "beside")
        assert scan.beside.name == segment.name  # the very file, at once
        assert content(again(scan).beside) == MEDIUM
        (segment,) = payload.segments.all()
        assert not segment.owned
        with again(payload).open() as file:
            assert file.read() == MEDIUM

    await site.run(attach)


async def test_a_rollback_leaves_everything_as_it_was(site):
    def attach() -> None:
        scan, payload = new_scan(), deliver(MEDIUM)
        with transaction.atomic():
            payload.attach(scan, "beside")
            transaction.set_rollback(True)
        assert not again(scan).beside
        (segment,) = payload.segments.all()
        assert segment.owned
        with again(payload).open() as file:
            assert file.read() == MEDIUM

    await site.run(attach)


async def test_attaching_twice_to_the_same_field_changes_nothing(site):
    def attach() -> None:
        from delivery.models import Attachment

        scan, payload = new_scan(), deliver(MEDIUM)
        payload.attach(scan, "beside")
        name = again(scan).beside.name
        payload.attach(again(scan), "beside")
        assert again(scan).beside.name == name
        assert not Attachment.objects.exists()

    await site.run(attach)


# -- composed by a task --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [SMALL, MEDIUM, LARGE, b""], ids=["inline", "one segment", "two segments", "empty"])
async def test_another_storage_gets_a_copy_from_a_worker(site, chat_stack, data):
    def attach() -> Any:
        scan, payload = new_scan(), deliver(data, name="läb scan.tif")
        payload.attach(scan, "elsewhere")
        return scan, payload

    scan, payload = await site.run(attach)
    await site.until(lambda: again(scan).elsewhere, what="file")

    def look() -> None:
        file = again(scan).elsewhere
        assert file.name.startswith("scans/läb_scan")
        assert content(file) == data
        (segment,) = payload.segments.all()
        assert (segment.storage, segment.name, segment.owned) == ("default", file.name, False)
        with again(payload).open() as stored:
            assert stored.read() == data

    await site.run(look)
    assert chat_stack.files_of(payload.pk) == []  # ours went


async def test_several_segments_in_the_fields_own_storage_are_composed(site, chat_stack):
    def attach() -> Any:
        scan, payload = new_scan(), deliver(LARGE, name="scan.tif")
        payload.attach(scan, "beside")
        return scan, payload

    scan, payload = await site.run(attach)
    await site.until(lambda: again(scan).beside, what="file")
    assert await site.run(lambda: content(again(scan).beside)) == LARGE
    assert chat_stack.files_of(payload.pk) == []


async def test_a_file_stays_where_nobody_knows_whether_it_was_attached(site, monkeypatch, quiet):
    """The connection is lost at COMMIT, and the database had done it."""
    without_worker(monkeypatch)

    def attach() -> None:
        scan, payload = new_scan(), deliver(LARGE, name="scan.tif")
        payload.attach(scan, "beside")
        with lost_at_commit(monkeypatch, committed=True):
            compose_all()
        assert content(again(scan).beside) == LARGE

    await site.run(attach)


async def test_a_rollback_orders_nothing(site):
    def attach() -> None:
        from delivery.models import Attachment

        scan, payload = new_scan(), deliver(SMALL)
        with transaction.atomic():
            payload.attach(scan, "elsewhere")
            transaction.set_rollback(True)
        assert not Attachment.objects.exists()

    await site.run(attach)


async def test_a_lost_task_is_made_up_for_by_the_sweep(site, monkeypatch):
    without_worker(monkeypatch)

    def attach() -> None:
        from delivery.transfers import cleanup

        scan, payload = new_scan(), deliver(SMALL)
        payload.attach(scan, "elsewhere")
        cleanup.sweep()
        assert not again(scan).elsewhere  # not yet due: the task may still come
        everything_due()
        cleanup.sweep()
        assert content(again(scan).elsewhere) == SMALL

    await site.run(attach)


async def test_composing_twice_leaves_one_file(site, monkeypatch, chat_stack):
    without_worker(monkeypatch)

    def attach() -> None:
        from delivery.models import Attachment
        from delivery.transfers import attachments

        scan, payload = new_scan(), deliver(SMALL, name="twice.txt")
        payload.attach(scan, "elsewhere")
        row = Attachment.objects.get()
        attachments._compose(row)
        name = again(scan).elsewhere.name
        row = Attachment(pk=row.pk or 0, payload=payload, model="shelf.Scan", object_pk=str(scan.pk), field="elsewhere")
        attachments._compose(row)  # a second task, that began before the first was through
        assert again(scan).elsewhere.name == name
        assert len(list((chat_stack.var / "media" / "scans").glob("twice*"))) == 1

    await site.run(attach)


async def test_asked_for_twice_it_is_done_once(site, monkeypatch):
    without_worker(monkeypatch)

    def attach() -> None:
        from delivery.models import Attachment

        scan, payload = new_scan(), deliver(SMALL)
        payload.attach(scan, "elsewhere")
        payload.attach(scan, "elsewhere")
        assert Attachment.objects.count() == 1
        compose_all()

    await site.run(attach)


@pytest.mark.parametrize("last", ["composed", "handed over"])
async def test_the_last_call_counts(site, monkeypatch, last):
    without_worker(monkeypatch)

    def attach() -> None:
        scan, first = new_scan(), deliver(LARGE)
        second = deliver(SMALL if last == "composed" else MEDIUM)
        first.attach(scan, "beside")
        second.attach(scan, "beside")
        compose_all()
        assert content(again(scan).beside) == (SMALL if last == "composed" else MEDIUM)

    await site.run(attach)


async def test_one_payload_may_be_attached_to_several_objects(site, monkeypatch):
    without_worker(monkeypatch)

    def attach() -> None:
        payload, scans = deliver(MEDIUM), [new_scan(), new_scan()]
        for scan in scans:
            payload.attach(scan, "beside")
            compose_all()
        names = [again(scan).beside.name for scan in scans]
        assert len(set(names)) == 2
        assert [content(again(scan).beside) for scan in scans] == [MEDIUM, MEDIUM]

    await site.run(attach)


# -- what goes wrong -----------------------------------------------------------------------------------------------


async def test_an_object_that_was_deleted_meanwhile_keeps_nothing_alive(site, monkeypatch):
    without_worker(monkeypatch)
    user = await site.person()

    def attach() -> None:
        from delivery.models import Attachment

        scan, payload = new_scan(), deliver(SMALL, to=user.address, expires=datetime.timedelta(hours=2))
        payload.attach(scan, "elsewhere")
        assert again(payload).expires_at is None
        scan.delete()
        compose_all()
        assert not Attachment.objects.exists()
        assert timezone.now() < again(payload).expires_at <= timezone.now() + datetime.timedelta(hours=2)

    await site.run(attach)


async def test_code_of_the_site_that_fails_is_tried_again_later_and_holds_up_nobody(site, monkeypatch, quiet):
    without_worker(monkeypatch)

    def attach() -> None:
        from delivery.models import Attachment
        from delivery.transfers import cleanup

        broken, well, payload = new_scan(), new_scan(), deliver(SMALL)
        payload.attach(broken, "broken")
        payload.attach(well, "elsewhere")
        everything_due()
        cleanup.sweep()
        assert content(again(well).elsewhere) == SMALL
        row = Attachment.objects.get()
        assert (row.error, row.attempts) == ("ValueError", 1)
        assert row.due_at > timezone.now()
        row.delete()

    await site.run(attach)


async def test_a_full_disk_leaves_no_part_of_a_file(site, monkeypatch, quiet, chat_stack):
    without_worker(monkeypatch)

    def attach() -> None:
        from delivery.models import Attachment
        from delivery.storage import payloads

        scan, payload = new_scan(), deliver(LARGE, name="partial.bin")
        payload.attach(scan, "elsewhere")
        whole = payloads.pieces

        def failing(*arguments: Any) -> Any:
            yield next(whole(*arguments))
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(payloads, "pieces", failing)
        compose_all()
        assert Attachment.objects.get().error == "StorageUnavailable"
        assert not list((chat_stack.var / "media" / "scans").glob("partial*"))
        monkeypatch.setattr(payloads, "pieces", whole)
        compose_all()
        assert again(scan).elsewhere.name == "scans/partial.bin"

    await site.run(attach)


@pytest.mark.parametrize("name", ["..", "/", "???", ""])
async def test_a_name_that_no_storage_takes_becomes_another(site, monkeypatch, name):
    without_worker(monkeypatch)

    def attach() -> None:
        scan, payload = new_scan(), deliver(SMALL, name=name)
        payload.attach(scan, "elsewhere")
        compose_all()
        assert again(scan).elsewhere.name.startswith("scans/payload")

    await site.run(attach)


async def test_a_file_that_was_changed_afterwards_fails_visibly(site, chat_stack):
    def attach() -> None:
        from delivery.transfers import ranges

        scan, payload = new_scan(), deliver(MEDIUM)
        payload.attach(scan, "beside")
        Path(scan.beside.path).write_bytes(b"M" * len(MEDIUM))
        os.utime(scan.beside.path, (1, 1))
        with again(payload).open() as file, pytest.raises(IntegrityError):
            file.read(1)
        ranges.stage(payload.pk, 0, worker="")
        assert (again(payload).state, again(payload).failure) == ("failed", "digest")
        assert Path(scan.beside.path).exists()  # the site's, not ours to delete

    await site.run(attach)


async def test_what_cannot_be_attached_is_told_at_once(site):
    def attach() -> None:
        from delivery.models import Payload
        from tests.site_sockets.shelf.models import Scan

        scan, payload = new_scan(), deliver(SMALL)
        with pytest.raises(UsageError, match="no field 'missing'"):
            payload.attach(scan, "missing")
        with pytest.raises(UsageError, match="is a CharField, expected a FileField"):
            payload.attach(scan, "title")
        with pytest.raises(UsageError, match="save the instance"):
            payload.attach(Scan(pk=999), "beside")
        stale = Payload.objects.get(pk=payload.pk)
        payload.discard()
        with pytest.raises(UsageError, match="is cancelled, expected complete"):
            stale.attach(scan, "beside")

    await site.run(attach)


# -- for good ------------------------------------------------------------------------------------------------------


async def test_what_is_attached_is_never_swept(site, monkeypatch, chat_stack):
    without_worker(monkeypatch)
    user = await site.person()

    def attach() -> None:
        from delivery.models import Payload
        from delivery.transfers import cleanup

        handed, composed = new_scan(), new_scan()
        payloads = [deliver(MEDIUM, to=user.address, expires=datetime.timedelta(seconds=-1)) for _ in range(2)]
        payloads[0].attach(handed, "beside")
        payloads[1].attach(composed, "elsewhere")
        cleanup.sweep()
        compose_all()
        later = timezone.now() + datetime.timedelta(days=1, minutes=5)
        monkeypatch.setattr(timezone, "now", lambda: later)
        cleanup.sweep()
        for payload in payloads:
            cleanup.delete_orphans(payload.pk)
        assert content(again(handed).beside) == MEDIUM
        assert content(again(composed).elsewhere) == MEDIUM
        assert set(Payload.objects.filter(pk__in=[one.pk for one in payloads]).values_list("state", flat=True)) == {
            "complete"
        }

    await site.run(attach)


async def test_the_sites_file_outlives_its_payload(site):
    def attach() -> None:
        from delivery.transfers import cleanup

        scan, payload = new_scan(), deliver(MEDIUM)
        payload.attach(scan, "beside")
        payload.discard()
        cleanup.delete_lost()
        assert content(again(scan).beside) == MEDIUM

    await site.run(attach)


async def test_the_sites_file_outlives_the_row_of_its_payload(site, monkeypatch):
    """It lies in our folder, which looks like one that `deliver()` left behind when it was killed."""

    def attach() -> None:
        from delivery.transfers import cleanup

        scan, payload = new_scan(), deliver(MEDIUM)
        payload.attach(scan, "beside")
        payload.delete()
        later = timezone.now() + datetime.timedelta(days=2)
        monkeypatch.setattr(timezone, "now", lambda: later)
        cleanup.delete_lost()
        assert content(again(scan).beside) == MEDIUM

    await site.run(attach)


async def test_an_attached_payload_is_still_delivered(site, chat_stack):
    from delivery.client import connect

    user = await site.person()

    def attach() -> None:
        payload = deliver(MEDIUM, to=user.address)
        payload.attach(new_scan(), "beside")

    await site.run(attach)
    async with connect(chat_stack.ws_url, user.token, receive=True) as client:
        async for incoming in client.deliveries():
            assert hashlib.sha256(await incoming.read()).digest() == hashlib.sha256(MEDIUM).digest()
            break


def test_limits_of_these_tests():
    assert len(SMALL) <= conf.current().inline_limit < len(MEDIUM) < conf.current().segment_size < len(LARGE)
