"""Saving as a file against everything that can happen between two calls of the system.

Real files in a real directory. The calls of the sink are counted, and at one of them something happens: the process is
killed (nothing that it does afterwards has any effect), the call fails, or another process changes the files. Whatever
happens, what is called saved is exactly the payload, once; all else fails visibly, and a later process ends it well.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import random
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from delivery.client.file_sink import FileSink
from delivery.client.receiving_directory import FOLDER
from delivery.client.sinks import Saved
from delivery.errors import IntegrityError, StorageUnavailable

pytestmark = pytest.mark.no_cover  # what it reaches is up to chance

TRANSFER = "0d8e2d8e-6d6c-4c7e-9f0e-5b9f5f3b2a10"
BLOCK_BYTES = 8_192
CALLS = ("open", "mkdir", "link", "replace", "write", "ftruncate", "fsync", "fdatasync", "unlink")
STEPS = 40  # a payload of a few blocks takes fewer calls
THREAD = "sink-model"
JUNK = b"\xa5"
THEIRS = b"theirs"
POOL = random.Random(7).randbytes(1 << 18)
#: In memory where there is such a file system: what is made durable is not what is tested.
FAST = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None


BETWEEN = ("", "", "take name", "remove folder", "remove part", "cut part", "grow part", "replace part", "damage part")


class Killed(BaseException):
    """The process is no more. Its descriptors are closed, as the kernel does."""


@dataclass
class World:
    """A directory, and what is to happen at which of the sink's calls."""

    directory: Path
    data: bytes
    links: bool = True
    step: int = -1
    what: str = ""
    calls: int = 0
    dead: bool = False
    moved: bool = False  # it has its name: what happens to it now is its owner's business
    tainted: bool = False  # somebody changed what we had received
    junk: bool = False
    spoilt: bool = False  # what had its name was changed through the part of a process that was killed just then
    forgot: bool = False  # somebody removed all notes: what a killed process left under a name is nobody's
    theirs: set[str] = field(default_factory=set)
    ends: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.directory / FOLDER

    @property
    def part(self) -> Path:
        return self.folder / f"{TRANSFER}.part"

    def arm(self, step: int, what: str, *, links: bool) -> None:
        self.step, self.what, self.links = step, what, links
        self.calls, self.dead, self.moved = 0, False, False

    def call(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if self.dead:
            raise Killed
        here, self.calls = self.calls == self.step, self.calls + 1
        if here and (self.what == "kill before" or self.what.startswith("E")):
            self._stop()
        if here and not self.moved and not self._has_its_name():
            self.interfere(self.what)
        if name == "link" and not self.links:
            raise OSError(errno.EPERM, "no hard links here")
        if here and self.what == "short write" and name == "write":
            return real(arguments[0], bytes(arguments[1])[: max(1, len(arguments[1]) // 2)])
        result = real(*arguments, **options)
        if name == "link" or (name == "replace" and Path(arguments[0]) == self.part):
            self.moved = True
        if here and self.what == "kill after":
            self._stop()
        return result

    def _has_its_name(self) -> bool:
        """Return whether a process that was killed gave the part its name: then only what happens between two is seen."""
        return self.part.is_file() and self.part.stat().st_nlink > 1

    def _stop(self) -> None:
        if self.what.startswith("E"):
            raise OSError(getattr(errno, self.what), "at this step")
        self.dead = True
        raise Killed

    def interfere(self, what: str) -> None:
        """Do what another process does to our files."""
        there = self.part.stat().st_size if self.part.is_file() else None
        match what:
            case "take name":
                free = next(name for n in range(9) if not os.path.lexists(self.directory / (name := f"scan ({n}).tif")))
                names = ["scan.tif", free]
                for name in names:
                    if not os.path.lexists(self.directory / name):
                        (self.directory / name).write_bytes(THEIRS)
                        self.theirs.add(name)
                        break
            case "remove folder":
                shutil.rmtree(self.folder, ignore_errors=True)
                self.forgot = True
            case "remove part" if there is not None:
                self.part.unlink()
            case "cut part" if there:
                self._resize(there // 2)
            case "grow part" if there is not None:
                self._resize(there + 5_000)
            case "replace part" if there is not None:
                other = self.part.with_name("other")
                other.write_bytes(JUNK * there)
                os.replace(other, self.part)
                self.tainted = self.junk = True
            case "damage part" if there:  # between two processes only: within one, nobody could tell
                self.spoilt = self.spoilt or self._has_its_name()
                with self.part.open("r+b") as file:
                    file.write(JUNK)
                self.tainted = True

    def _resize(self, length: int) -> None:
        self.spoilt = self.spoilt or self._has_its_name()
        os.truncate(self.part, length)
        self.tainted = True

    def visible(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.directory.iterdir() if path.name != FOLDER}


@contextlib.contextmanager
def counted(world: World) -> Iterator[None]:
    """Let the calls of the sink's threads go through `world`; everybody else's stay what they are."""
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, _through(world, name, getattr(os, name)))
        yield


def _through(world: World, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    inside = threading.local()

    def call(*arguments: Any, **options: Any) -> Any:
        ours = threading.current_thread().name.startswith(THREAD) and not getattr(inside, "on", False)
        if not ours:
            return real(*arguments, **options)
        inside.on = True
        try:
            return world.call(name, real, arguments, options)
        finally:
            inside.on = False

    return call


async def process(world: World, stop_after: int | None, *, size_known: bool) -> Saved | None:
    """Be one process that receives; `stop_after`: blocks, after which it ends in an orderly way."""
    data = world.data
    with ThreadPoolExecutor(1, thread_name_prefix=THREAD) as pool:
        sink = FileSink(world.directory, TRANSFER, "scan.tif", len(data) if size_known else None, pool=pool)
        try:
            if (saved := await sink.open()) is not None:
                return saved
            blocks = 0
            while sink.position < len(data):
                if blocks == stop_after:
                    await sink.detach()
                    return None
                at = sink.position
                await sink.write([memoryview(data)[at : at + BLOCK_BYTES]])
                blocks += 1
                if blocks % 2 == 0:
                    await sink.detach()  # a connection that ends makes it durable, as time does
            return await sink.finish({hashlib.sha256(data).hexdigest()})
        finally:
            with contextlib.suppress(StorageUnavailable, Killed):
                await sink.close()


def run(world: World, stop_after: int | None = None, *, size_known: bool = True) -> Saved | None:
    """Let a process run to its end, whichever; what it calls saved is the payload. None where it saved nothing."""
    try:
        saved = asyncio.run(process(world, stop_after, size_known=size_known))
    except Killed:
        world.ends.append("killed")
        return None
    except StorageUnavailable:
        world.ends.append("failed visibly")
        return None
    except IntegrityError:
        assert world.tainted, "a digest differs although nobody changed anything"
        world.ends.append("digest differs")
        return None
    if saved is not None:
        assert saved.path is not None
        assert saved.path.read_bytes() == world.data
    return saved


def end_well(world: World, *, size_known: bool = True) -> None:
    """Let processes run to which nothing happens; the payload is then there, once, and nothing half done beside it."""
    world.arm(-1, "", links=world.links)
    saved = run(world, size_known=size_known)
    if saved is None:
        assert world.tainted
        saved = run(world, size_known=size_known)
    assert saved is not None
    visible = world.visible()
    assert saved.path is not None
    assert visible.pop(saved.path.name) == world.data
    for name in world.theirs:
        assert visible.pop(name) == THEIRS
    for content in visible.values():
        junk = world.junk and set(content) <= set(JUNK)
        assert junk or world.spoilt or (world.forgot and content in (b"", world.data))
    assert not world.part.exists()
    assert run(world, size_known=size_known) == saved  # the receipt answers a repeated offer


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=FAST) as name:
        yield Path(name)


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize(
    "what",
    ["kill before", "kill after", "ENOSPC", "EIO", "EDQUOT", "remove part", "replace part", "cut part", "take name"],
)
def test_it_survives_at_every_step(folder: Path, what: str, *, links: bool) -> None:
    """No draw of luck: this payload, and each of its steps."""
    for step in range(STEPS):
        directory = folder / str(step)
        directory.mkdir()
        world = World(directory, POOL[: 2 * BLOCK_BYTES + 100])
        with counted(world):
            world.arm(step, what, links=links)
            run(world)
            end_well(world)


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("between", [what for what in BETWEEN if what])
@pytest.mark.parametrize("size", [0, BLOCK_BYTES + 100])
def test_it_survives_what_happens_after_it_was_killed(folder: Path, size: int, between: str, *, links: bool) -> None:
    for step in range(STEPS):
        directory = folder / str(step)
        directory.mkdir()
        world = World(directory, POOL[:size])
        with counted(world):
            world.arm(step, "kill after", links=links)
            run(world)
            if world.calls < step:
                break
            world.interfere(between)
            end_well(world)


WHATS = (
    *("kill before", "kill after", "ENOSPC", "EIO", "EACCES", "EDQUOT", "EROFS", "short write"),
    *("take name", "remove folder", "remove part", "cut part", "grow part", "replace part"),
)


@dataclass(frozen=True)
class Plan:
    """One process: what happens before it, and at which of its calls; after how many blocks it ends by itself."""

    before: str
    step: int
    what: str
    stop_after: int | None
    links: bool


plans = st.builds(
    Plan,
    before=st.sampled_from(BETWEEN),
    step=st.integers(0, STEPS),
    what=st.sampled_from(WHATS),
    stop_after=st.one_of(st.none(), st.integers(0, 6)),
    links=st.booleans(),
)
sizes = st.sampled_from([0, 1, 4_095, 4_096, 4_097, BLOCK_BYTES, 2 * BLOCK_BYTES + 100, 6 * BLOCK_BYTES, 50_001])


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(size=sizes, size_known=st.booleans(), processes=st.lists(plans, min_size=1, max_size=4))
def test_what_is_called_saved_is_the_payload(size: int, processes: list[Plan], *, size_known: bool) -> None:
    with tempfile.TemporaryDirectory(dir=FAST) as name:
        world = World(Path(name), POOL[:size])
        with counted(world):
            for plan in processes:
                world.interfere(plan.before)
                world.arm(plan.step, plan.what, links=plan.links)
                if run(world, plan.stop_after, size_known=size_known) is not None:
                    break
            for end in world.ends:
                event(end)
            end_well(world, size_known=size_known)
