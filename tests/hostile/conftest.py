"""What every hostile test has: a server of its own kind, and proof afterwards that nobody else took harm."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from delivery.models import Segment
from tests.hostile.wire import Wire
from tests.launch.live import ROOT
from tests.stack import Person, Site, Stack, WebProcess, site_of

MIB = 1024 * 1024
GROWTH_BYTES = 48 * MIB  # that the web process may keep: what its allocator holds back, and its caches
UPLOAD_SECONDS = 10.0  # of 300 KiB, on a machine that runs the attack as well
PING_SECONDS = 5.0

Open = Callable[..., Awaitable[Wire]]


class Target:
    """The stack under attack: its web process, and what it keeps."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.port, self.ws_url = stack.port, stack.ws_url
        (self.pid,) = stack.pids()["web"]

    def log(self) -> str:
        return self.stack.log()

    def rss(self) -> int:
        """Return the bytes of memory that it has."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * 4096

    def chunk_keys(self) -> int:
        """Return how many chunks lie in Redis."""
        with contextlib.closing(self.stack.redis()) as client:
            return sum(1 for _ in client.scan_iter("delivery:1:c:*", count=1000))

    def files(self) -> set[str]:
        folder = self.stack.payload_folder
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class Bystander:
    """Somebody who uses the server meanwhile, in a process of its own."""

    def __init__(self, port: int, token: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.bystander", str(port), token],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._line()

    def report(self) -> dict[str, Any]:
        """Return what it saw since the last report; fail where its socket was closed."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        report: dict[str, Any] = json.loads(self._line())
        return report

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the bystander's transfers ended"
        return line

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A stack of its own, so that its memory is its own and its policy that of these tests in all of its parts."""
    var = tmp_path_factory.mktemp("hostile") / "var"
    options = ("--workers=1", "--concurrency=2")
    stack = Stack(var, *options, DJANGO_SETTINGS_MODULE="tests.hostile.settings", CELERY_APP="project")
    try:
        stack.wait_ready()
        yield Target(stack)
    finally:
        stack.stop()


@pytest.fixture(scope="session")
def impatient(target: Target) -> Iterator[WebProcess]:
    """A second web process, with a short heartbeat."""
    process = WebProcess(target.stack, "tests.quick_settings")
    try:
        yield process
    finally:
        process.stop()


@pytest.fixture
def site(target: Target, django_db_blocker: Any) -> Iterator[Site]:
    """This process's Django, on the state of the stack under attack."""
    with django_db_blocker.unblock(), site_of(target.stack) as site:
        yield site


@pytest.fixture(scope="session")
def bystander(target: Target, django_db_blocker: Any) -> Iterator[Bystander]:
    with django_db_blocker.unblock(), site_of(target.stack) as site:
        person = asyncio.run(site.person())
    one = Bystander(target.port, person.token)
    try:
        yield one
    finally:
        one.stop()


@pytest.fixture
async def unharmed(target: Target, bystander: Bystander, site: Site) -> AsyncIterator[None]:
    """Check after an attack that the server lives, others were not disturbed, and nothing was left behind."""
    before = target.rss()
    said = len(target.log())
    bystander.report()
    yield
    seen = [bystander.report()]
    while not sum(report["uploads"] for report in seen):
        await asyncio.sleep(0.1)
        seen.append(bystander.report())
        assert seen[-1]["upload_seconds"] < UPLOAD_SECONDS, seen
    assert max(report["upload_seconds"] for report in seen) < UPLOAD_SECONDS
    assert max(report["ping_seconds"] for report in seen) < PING_SECONDS
    log = target.log()[said:]
    assert "Traceback" not in log or "Invalid UTF-8 sequence" in log, log
    assert target.rss() - before < GROWTH_BYTES
    await site.until(lambda: target.chunk_keys() <= 2, what="empty buffer")  # but for the bystander's own
    await site.until(lambda: _orphans(target) == set(), what="Storage without orphans")
    assert target.stack.keys_without_ttl() == []


def _orphans(target: Target) -> set[str]:
    found = target.files()
    return found - set(Segment.objects.values_list("name", flat=True))


@pytest.fixture
async def wires() -> AsyncIterator[contextlib.AsyncExitStack]:
    async with contextlib.AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def open_wire(target: Target, site: Site, wires: contextlib.AsyncExitStack) -> Open:
    """Return a function that opens a hand-made socket of a person and says hello. `hello=False`: only opens it."""

    async def open_wire(person: Person | None, *, hello: bool = True, port: int = 0, **options: Any) -> Wire:
        opening = Wire.open(port or target.port, person.token if person else None, **options)
        wire = await wires.enter_async_context(opening)
        if hello:
            await wire.hello()
        return wire

    return open_wire


@pytest.fixture
async def mallory(site: Site) -> Person:
    """A user who means no good."""
    return await site.person()
