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
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from delivery.client import placement
from delivery.client.files import FOLDER
from delivery.client.sinks import Saved
from delivery.client.store import FileSink
from delivery.errors import StorageUnavailable

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
        self._pool = pool
        self._sinks: list[FileSink] = []

    def sink(self, data: bytes = DATA, **options: Any) -> FileSink:
        sink = FileSink(self.directory, self.transfer, "scan.tif", len(data), pool=self._pool, **options)
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
        from delivery.client.store import FileSink

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
