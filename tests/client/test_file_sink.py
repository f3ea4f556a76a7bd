"""Saving as a file, step by step: what a receipt stands for, whatever happens to the directory meanwhile."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from delivery.client import file_sink, files, placement
from delivery.client.file_sink import FileSink
from delivery.client.receiving_directory import FOLDER, ReceivingDirectory, prune
from delivery.client.sinks import Saved
from delivery.errors import StorageUnavailable, UsageError

DATA = os.urandom(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
ROOT = Path(__file__).resolve().parents[2]


class Place:
    """A directory that one transfer is received into, by one sink after another."""

    def __init__(self, directory: Path, pool: ThreadPoolExecutor) -> None:
        self.directory = directory
        self.transfer = str(uuid.uuid4())
        self.part = directory / FOLDER / f"{self.transfer}.part"
        self.note = directory / FOLDER / f"{self.transfer}.json"
        self.pool = pool
        self._sinks: list[FileSink] = []

    def sink(self, data: bytes = DATA, **options: Any) -> FileSink:
        sink = FileSink(self.directory, self.transfer, "scan.tif", len(data), pool=self.pool, **options)
        self._sinks.append(sink)
        return sink

    async def receive(self, sink: FileSink | None = None, data: bytes = DATA) -> Saved:
        """Do what a connection does, from where the sink stands; let go of it as a program does."""
        sink = sink or self.sink(data)
        try:
            if (saved := await sink.open()) is not None:
                return saved
            while sink.position < len(data):
                await sink.write([memoryview(data)[sink.position : sink.position + 65_536]])
            return await sink.finish({hashlib.sha256(data).hexdigest()})
        finally:
            await sink.close()

    def visible(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.directory.iterdir() if path.name != FOLDER}

    def noted(self) -> dict[str, Any]:
        return json.loads(self.note.read_text())

    def write_note(self, **members: Any) -> None:
        self.note.parent.mkdir(exist_ok=True)
        known = {"transfer": self.transfer, "size": len(DATA), "position": len(DATA), "sha256": SHA256}
        self.note.write_text(json.dumps({**known, **members}))

    async def close(self) -> None:
        for sink in self._sinks:
            await sink.close()


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    with ThreadPoolExecutor(2) as pool:
        place = Place(tmp_path, pool)
        yield place
        await place.close()


def with_os(monkeypatch: pytest.MonkeyPatch, **functions: Callable[..., Any]) -> None:
    """Have the move, and nothing else, call other functions of the system."""
    monkeypatch.setattr(placement, "os", SimpleNamespace(**{**vars(os), **functions}))


def no_links(monkeypatch: pytest.MonkeyPatch, number: int = errno.EPERM, **functions: Callable[..., Any]) -> None:
    def refuse(part: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), str(part), None, str(target))

    with_os(monkeypatch, link=refuse, **functions)


# -- a receipt is only for what is there -------------------------------------------------------------------------------


async def test_a_part_that_is_removed_while_it_is_received_is_no_file(place: Place) -> None:
    sink = place.sink()
    await sink.open()
    await sink.write([memoryview(DATA)])
    place.part.unlink()
    with pytest.raises(StorageUnavailable, match="removed"):
        await sink.finish({SHA256})
    await sink.close()
    assert place.visible() == {}
    assert (await place.receive()).path == place.directory / "scan.tif"  # a later run receives it again
    assert place.visible() == {"scan.tif": DATA}


async def test_a_part_that_is_gone_is_found_before_everything_came(place: Place) -> None:
    sink = place.sink()
    await sink.open()
    await sink.write([memoryview(DATA)[:65_536]])
    place.part.unlink()
    with pytest.raises(StorageUnavailable, match="removed"):
        await sink.write([memoryview(DATA)[65_536:]])


async def test_a_part_that_is_replaced_by_a_stranger_is_not_taken_for_ours(place: Place) -> None:
    sink = place.sink()
    await sink.open()
    await sink.write([memoryview(DATA)])
    other = place.part.with_name("other")
    other.write_bytes(bytes(len(DATA)))
    os.replace(other, place.part)
    with pytest.raises(StorageUnavailable, match="replaced"):
        await sink.finish({SHA256})
    assert place.visible() == {}


async def test_a_part_that_is_replaced_as_it_is_moved_is_not_taken_for_ours(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced_first(part: Path, target: Path) -> None:
        os.unlink(part)
        part.write_bytes(bytes(len(DATA)))
        os.link(part, target)

    with_os(monkeypatch, link=replaced_first)
    with pytest.raises(StorageUnavailable, match="replaced"):
        await place.receive()
    monkeypatch.undo()
    assert place.visible() == {}
    await place.receive()
    assert place.visible() == {"scan.tif": DATA}


@pytest.mark.parametrize("length", [0, 70_000, 131_072 + 65_536])
async def test_a_part_that_another_process_resized_fails_the_save(place: Place, length: int) -> None:
    sink = place.sink()
    await sink.open()
    await sink.write([memoryview(DATA)[:131_072]])
    os.truncate(place.part, length)
    with pytest.raises(StorageUnavailable, match="changed"):
        await sink.write([memoryview(DATA)[131_072:]])
    await sink.close()
    await place.receive()
    assert place.visible() == {"scan.tif": DATA}


async def test_a_part_that_is_cut_short_after_its_last_byte_fails_the_save(place: Place) -> None:
    sink = place.sink()
    await sink.open()
    await sink.write([memoryview(DATA)])
    os.truncate(place.part, 1000)
    with pytest.raises(StorageUnavailable, match="changed"):
        await sink.finish({SHA256})
    assert place.visible() == {}


async def test_a_part_that_is_cut_short_as_it_is_moved_leaves_nothing_under_the_name(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short(part: Path, target: Path) -> None:
        os.truncate(part, 1000)
        os.link(part, target)

    with_os(monkeypatch, link=cut_short)
    with pytest.raises(StorageUnavailable, match="changed"):
        await place.receive()
    assert place.visible() == {}


async def test_a_name_that_was_taken_with_a_lost_answer_is_ours(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS sends a request again whose answer was lost, and hears that the name exists."""

    def twice(part: Path, target: Path) -> None:
        os.link(part, target)
        os.link(part, target)

    with_os(monkeypatch, link=twice)
    await place.receive()
    assert place.visible() == {"scan.tif": DATA}


# -- no hard links -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", sorted(placement.NO_HARD_LINKS))
async def test_without_hard_links_the_part_is_renamed(
    place: Place, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    no_links(monkeypatch, number)
    (place.directory / "scan.tif").write_bytes(b"mine")
    assert (await place.receive()).path == place.directory / "scan (1).tif"
    assert place.visible() == {"scan.tif": b"mine", "scan (1).tif": DATA}
    assert list(place.part.parent.glob("*.part")) == []
    assert "claimed" not in place.noted()


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
async def test_any_other_failure_of_a_link_leaves_nothing_under_the_name(
    place: Place, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    no_links(monkeypatch, number)
    with pytest.raises(StorageUnavailable):
        await place.receive()
    assert place.visible() == {}
    monkeypatch.undo()
    await place.receive()  # what was received is kept
    assert place.visible() == {"scan.tif": DATA}


async def test_a_rename_that_fails_leaves_no_placeholder(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    no_links(monkeypatch, replace=_failing)
    with pytest.raises(StorageUnavailable):
        await place.receive()
    assert place.visible() == {}


def _failing(part: Path, target: Path) -> None:
    raise OSError(errno.EIO, "broken", str(part), None, str(target))


async def test_without_hard_links_a_part_that_vanishes_leaves_no_placeholder(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanished(part: Path, target: Path) -> None:
        os.unlink(part)
        os.replace(part, target)

    no_links(monkeypatch, replace=vanished)
    with pytest.raises(StorageUnavailable):
        await place.receive()
    assert place.visible() == {}


# -- what SIGKILL left -------------------------------------------------------------------------------------------------


async def test_a_placeholder_that_a_killed_process_left_is_removed(place: Place) -> None:
    target = place.directory / "scan.tif"
    place.write_note(state="complete", path=str(target), claimed=True)
    place.part.write_bytes(DATA)
    target.touch()
    assert (await place.receive()).path == target
    assert place.visible() == {"scan.tif": DATA}


async def test_a_placeholder_is_removed_although_the_part_is_gone(place: Place) -> None:
    target = place.directory / "scan.tif"
    place.write_note(state="complete", path=str(target), claimed=True)
    target.touch()
    assert (await place.receive()).path == target
    assert place.visible() == {"scan.tif": DATA}


async def test_a_name_that_somebody_else_took_is_left_alone(place: Place) -> None:
    target = place.directory / "scan.tif"
    place.write_note(state="complete", path=str(target), claimed=True)
    place.part.write_bytes(DATA)
    target.write_bytes(b"theirs")
    assert (await place.receive()).path == place.directory / "scan (1).tif"
    assert place.visible() == {"scan.tif": b"theirs", "scan (1).tif": DATA}


async def test_a_part_that_is_gone_is_not_taken_for_moved(place: Place) -> None:
    """An earlier version left an empty file under the name, and the next run said done."""
    target = place.directory / "scan.tif"
    place.write_note(state="complete", path=str(target))
    target.touch()
    assert (await place.receive()).path == place.directory / "scan (1).tif"
    assert place.visible()["scan (1).tif"] == DATA


async def test_a_file_that_was_moved_already_is_known_by_its_digest(place: Place) -> None:
    target = place.directory / "scan.tif"
    place.write_note(state="complete", path=str(target))
    target.write_bytes(DATA)
    sink = place.sink()
    assert await sink.open() == Saved(len(DATA), SHA256, target)
    assert place.visible() == {"scan.tif": DATA}
    assert not place.part.exists()


async def test_an_empty_payload_that_has_its_name_gets_no_second_one(place: Place) -> None:
    (place.directory / "scan.tif").touch()
    place.write_note(state="complete", path="scan.tif", size=0, position=0, sha256=hashlib.sha256(b"").hexdigest())
    await place.receive(data=b"")
    assert place.visible() == {"scan.tif": b""}


async def test_a_complete_part_is_hashed_by_a_later_run(place: Place) -> None:
    place.write_note(state="complete", path=str(place.directory / "scan.tif"))
    place.part.write_bytes(bytes(len(DATA)))
    await place.receive()
    assert place.visible() == {"scan.tif": DATA}


async def test_a_receipt_of_a_file_that_is_something_else_now_is_none(place: Place) -> None:
    target = place.directory / "scan.tif"
    place.write_note(state="saved", path=str(target))
    target.touch()
    assert (await place.receive()).path == place.directory / "scan (1).tif"
    assert place.visible() == {"scan.tif": b"", "scan (1).tif": DATA}


async def test_a_receipt_stands_after_its_file_was_moved_away(place: Place) -> None:
    place.write_note(state="saved", path=str(place.directory / "scan.tif"))
    assert await place.sink().open() == Saved(len(DATA), SHA256, place.directory / "scan.tif")
    assert place.visible() == {}


STEPS = ("before link", "after link", "before replace", "after replace", "claimed", "complete noted", "before saved")


@pytest.mark.parametrize("step", STEPS)
async def test_a_process_that_is_killed_at_a_step_of_the_move_neither_loses_nor_doubles(
    place: Place, step: str
) -> None:
    """A real process, killed for good between two calls of the system."""
    script = textwrap.dedent(
        """
        import asyncio, errno, hashlib, os, signal, sys
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        from delivery.client import placement
        from delivery.client.file_sink import FileSink

        step, directory, transfer, data = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.stdin.buffer.read()
        die = lambda: os.kill(os.getpid(), signal.SIGKILL)

        def wrapped(name, before, after, refuse=False):
            real = getattr(os, name)
            def call(*arguments, **options):
                if step == before: die()
                if refuse: raise OSError(errno.EPERM, "no links")
                result = real(*arguments, **options)
                if step == after: die()
                return result
            return call

        links = step.endswith("link") or step.endswith("noted") or step.endswith("saved")
        placement.os = type("Os", (), {**vars(os)})
        placement.os.link = staticmethod(wrapped("link", "before link", "after link", refuse=not links))
        placement.os.replace = staticmethod(wrapped("replace", "before replace", "after replace"))
        placement.os.open = staticmethod(wrapped("open", "", "claimed"))
        write = FileSink._write_note
        def noting(self, note, **options):
            if step == "before saved" and note.state == "saved": die()
            write(self, note, **options)
            if step == "complete noted" and note.state == "complete": die()
        FileSink._write_note = noting

        async def main():
            with ThreadPoolExecutor(1) as pool:
                sink = FileSink(directory, transfer, "scan.tif", len(data), pool=pool)
                await sink.open()
                await sink.write([memoryview(data)])
                await sink.finish({hashlib.sha256(data).hexdigest()})

        asyncio.run(main())
        """
    )
    arguments = [sys.executable, "-c", script, step, str(place.directory), place.transfer]
    ran = await asyncio.to_thread(subprocess.run, arguments, input=DATA, cwd=ROOT, timeout=60, capture_output=True)
    assert ran.returncode == -9, ran.stderr.decode()
    assert (await place.receive()).path == place.directory / "scan.tif"
    assert place.visible() == {"scan.tif": DATA}
    assert list(place.part.parent.glob("*.part")) == []


# -- what is kept, and for how long ------------------------------------------------------------------------------------

YESTERDAY = (datetime.now(UTC) - timedelta(days=1)).isoformat()
TOMORROW = (datetime.now(UTC) + timedelta(days=1)).isoformat()


async def begin(place: Place, **options: Any) -> FileSink:
    """Leave what a process leaves that ends in the middle."""
    sink = place.sink(**options)
    await sink.open()
    await sink.write([memoryview(DATA)[:65_536]])
    await sink.detach()
    return sink


def kept(place: Place) -> bool:
    assert place.part.exists() == place.note.exists()
    return place.part.exists()


@pytest.mark.parametrize(
    ("expires", "stays"),
    [(YESTERDAY, False), (TOMORROW, True), (None, True), ("soon", True)],
    ids=["yesterday", "tomorrow", "never", "nonsense"],  # the same in every process of a test run
)
async def test_parts_of_expired_payloads_are_removed(place: Place, expires: str | None, *, stays: bool) -> None:
    await (await begin(place, expires=expires)).close()
    prune(place.part.parent)
    assert kept(place) is stays


@pytest.mark.parametrize("with_note", [True, False])
async def test_parts_of_which_nothing_comes_any_more_are_removed(place: Place, *, with_note: bool) -> None:
    await (await begin(place, expires=TOMORROW if with_note else None)).close()
    if not with_note:
        place.note.unlink()
    month_ago = time.time() - 31 * 86_400
    os.utime(place.part, (month_ago, month_ago))
    prune(place.part.parent)
    assert not kept(place)


async def test_a_part_that_is_being_saved_is_not_removed(place: Place) -> None:
    await begin(place, expires=YESTERDAY)
    prune(place.part.parent)
    assert kept(place)


async def test_a_part_that_outlived_its_receipt_is_removed(place: Place) -> None:
    (place.directory / "scan.tif").write_bytes(DATA)
    place.write_note(state="saved", path="scan.tif")
    os.link(place.directory / "scan.tif", place.part)
    prune(place.part.parent)
    assert (place.part.exists(), place.note.exists()) == (False, True)


async def test_files_that_a_crash_left_half_written_are_removed(place: Place) -> None:
    await (await begin(place)).close()
    left, fresh = place.note.with_name("1.json.77.new"), place.note.with_name("2.json.78.new")
    left.touch()
    fresh.touch()
    os.utime(left, (0, 0))
    prune(place.part.parent)
    assert (left.exists(), fresh.exists()) == (False, True)


async def test_a_directory_is_looked_through_once_an_hour(place: Place) -> None:
    prune(place.directory)
    await (await begin(place, expires=YESTERDAY)).close()
    prune(place.part.parent)
    assert not kept(place)
    await (await begin(place, expires=YESTERDAY)).close()
    prune(place.part.parent)
    assert kept(place)
    os.utime(place.part.parent / "pruned", (0, 0))
    prune(place.part.parent)
    assert not kept(place)


async def test_receiving_into_a_directory_removes_what_expired(place: Place) -> None:
    await (await begin(place, expires=YESTERDAY)).close()
    with ReceivingDirectory(place.directory, "f" * 32):
        assert not kept(place)


async def test_an_earlier_version_reads_the_receipt(place: Place) -> None:
    await place.receive(place.sink(expires=TOMORROW))
    assert sorted(place.noted()) == ["path", "position", "sha256", "size", "state", "transfer"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        "[" * 100_000,
        '{"transfer": "%s", "position": "5"}',
        '{"transfer": "%s", "size": [], "position": 0}',
    ],
)
async def test_a_note_that_cannot_be_understood_is_none(place: Place, content: str) -> None:
    await (await begin(place)).close()
    place.note.write_text(content.replace("%s", place.transfer))
    await place.receive()
    assert place.visible() == {"scan.tif": DATA}


@pytest.mark.parametrize("state", ["complete", "saved"])
async def test_a_note_without_its_digest_is_none(place: Place, state: str) -> None:
    place.write_note(state=state, sha256=None, path="scan.tif")
    await place.receive()
    assert place.visible() == {"scan.tif": DATA}


async def test_a_directory_that_was_moved_takes_its_receipts_along(place: Place) -> None:
    place.write_note(state="saved", path="/somewhere/else/scan.tif")
    (place.directory / "scan.tif").write_bytes(DATA)
    assert (await place.receive()).path == place.directory / "scan.tif"


# -- what stands in the way --------------------------------------------------------------------------------------------


async def test_a_part_that_is_removed_while_its_lock_is_waited_for_is_not_written(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process had it, and discarded it between our opening and our lock."""
    removed: list[Path] = []

    def lock(descriptor: int) -> bool:
        if not removed:
            place.part.unlink()
            removed.append(place.part)
        return files.try_lock(descriptor)

    monkeypatch.setattr(file_sink, "try_lock", lock)
    await place.receive()
    assert place.visible() == {"scan.tif": DATA}


@pytest.mark.parametrize("number", sorted(files.NO_LOCKS))
async def test_where_there_are_no_locks_it_is_saved_without(
    place: Place, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    await place.receive()
    assert place.visible() == {"scan.tif": DATA}


async def test_another_opening_of_the_part_holds_it(place: Place) -> None:
    await begin(place)
    with pytest.raises(UsageError, match="saved by somebody else"):
        await place.receive()


@pytest.mark.parametrize("kind", ["directory", "link", "pipe"])
async def test_a_part_that_is_no_file_is_an_error(place: Place, kind: str) -> None:
    place.part.parent.mkdir()
    elsewhere = place.directory / "elsewhere"
    if kind == "directory":
        place.part.mkdir()
    elif kind == "link":
        place.part.symlink_to(elsewhere)
    else:
        os.mkfifo(place.part)
    with pytest.raises(StorageUnavailable, match="cannot save into"):
        await place.receive()
    assert not elsewhere.exists()


async def test_a_flush_that_failed_once_is_not_believed_later(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux reports an error of writing back once, and drops what it could not write."""

    def fail(descriptor: int) -> None:
        monkeypatch.undo()
        raise OSError(errno.EIO, "broken")

    sink = place.sink()
    await sink.open()
    await sink.write([memoryview(DATA)[:65_536]])
    monkeypatch.setattr(file_sink, "_flush", fail)
    with pytest.raises(StorageUnavailable):
        await sink.detach()
    await sink.close()
    assert not place.note.exists()
    await place.receive()
    assert place.visible() == {"scan.tif": DATA}


async def test_a_name_is_as_long_as_the_file_system_takes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encrypted folders take 143 bytes."""
    monkeypatch.setattr("delivery.client.placement.os.pathconf", lambda path, name: 143)
    sink = FileSink(place.directory, place.transfer, f"{'x' * 250}.tif", len(DATA), pool=place.pool)
    saved = await place.receive(sink)
    assert len(saved.path.name) == 128
    assert saved.path.suffix == ".tif"


async def test_names_that_differ_in_case_or_normal_form_do_not_replace_each_other(place: Place) -> None:
    """Here they are two names; where a file system takes them for one, the second is numbered like any other."""
    for name, data in (("caf\u00e9.txt", b"1"), ("cafe\u0301.txt", b"22"), ("CAF\u00c9.txt", b"333")):
        other = Place(place.directory, place.pool)
        await other.receive(FileSink(place.directory, other.transfer, name, len(data), pool=place.pool), data)
    assert sorted(place.visible().values()) == [b"1", b"22", b"333"]
