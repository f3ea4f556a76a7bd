"""Every kind of sink on real connections, against whatever comes between.

A real client receives from the protocol core over TCP, into a file, into memory, or block by block into a loop. It is
cut, stalled, paused, cancelled, closed and started again, its files are changed, its own code raises. Invariant: when
the server hears `done`, exactly these bytes are in the sink; everything else fails visibly or goes on, to a good end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from delivery.client import Client, Incoming, Progress, connect
from delivery.client.chunk_ceilings import Ceilings
from delivery.client.receiving_directory import FOLDER
from delivery.errors import ConnectionStopped, DeliveryError, IntegrityError, StorageUnavailable
from tests.client.server import CoreServer

pytestmark = pytest.mark.no_cover  # what it reaches is up to chance

CHUNK = 4_096
WINDOW = 4 * CHUNK
SECONDS = 10.0
POOL = random.Random(11).randbytes(64 * CHUNK)
FAST = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
FILE = ("remove part", "cut part", "grow part", "replace part", "remove folder", "take name")
ANY = ("cut", "go away", "hold", "cancel", "close", "crash", "raise", "flood of cuts", "stall reader")


class Broken(Exception):
    """What the program's own code raises."""


@dataclass(frozen=True)
class Step:
    """What happens once `at` (a share of the payload) was received."""

    at: float
    what: str


class Run:
    """One payload, received with whatever happens, by one program after another."""

    def __init__(self, server: CoreServer, kind: str, data: bytes, directory: Path) -> None:
        self.server, self.kind, self.data, self.directory = server, kind, data, directory
        self.waiting = server.offer(data)
        self.waiting.done = Checked(self.check)
        self.raises = False
        self.reads = asyncio.Event()
        self.reads.set()
        self.tainted = False
        self.collected = bytearray()
        self.wrong: list[str] = []
        self.ends: list[str] = []
        self.client: Client | None = None
        self.incoming: Incoming | None = None
        self.receiving: asyncio.Task[None] | None = None

    # -- the sinks -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Look at the sink at the moment at which the server hears that all of it is there."""
        match self.kind:
            case "file":
                held = any(path.read_bytes() == self.data for path in self.directory.iterdir() if path.is_file())
            case "blocks":
                held = bytes(self.collected) == self.data
            case _:
                held = True  # memory: `read` has yet to return it, and must
        if not held:
            self.wrong.append("done, and it is not there")

    async def receive(self) -> None:
        assert self.incoming is not None
        incoming = self.incoming
        match self.kind:
            case "file":
                path = await incoming.save(self.directory, progress=self.progress)
                assert path.read_bytes() == self.data
            case "memory":
                assert await incoming.read() == self.data
            case _:
                self.collected.clear()
                async for block in incoming:
                    if self.raises:
                        self.raises = False
                        raise Broken
                    await self.reads.wait()
                    self.collected += block
                assert bytes(self.collected) == self.data

    def progress(self, progress: Progress) -> None:
        if self.raises:
            self.raises = False
            raise Broken

    # -- the program -----------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Be connected and receive, on the handle that is offered; nothing where it was done already."""
        if self.client is None:
            self.client = connect(
                self.server.url, receive=True, client_id="me", window=WINDOW, ceilings=Ceilings(self.directory / "c")
            )
            await self.client.__aenter__()
        else:
            self.server.cut()  # what was set aside is offered on the next connection
        offered = asyncio.ensure_future(anext(self.client.deliveries()))
        await self.until_told(lambda: offered.done())
        if not offered.done():
            offered.cancel()
            return
        self.incoming = offered.result()
        self.receiving = asyncio.ensure_future(self.receive())
        await asyncio.sleep(0)  # or it never began, and nobody has the handle

    async def close(self, *, crash: bool = False) -> None:
        if self.client is None:
            return
        if crash and self.receiving is not None:
            self.receiving.cancel()
        await self.client.close()
        self.client = None

    async def ended(self) -> None:
        """Wait for the end of what is being received; it is good, or visible."""
        if self.receiving is None:
            return
        try:
            async with asyncio.timeout(SECONDS):
                await self.receiving
        except TimeoutError:
            self.wrong.append("it hangs")
        except IntegrityError:
            assert self.tainted
            self.ends.append("digest differs")
        except (StorageUnavailable, Broken, ConnectionStopped, asyncio.CancelledError) as error:
            self.ends.append(type(error).__name__)
            assert self.kind != "memory" or not self.waiting.done, "done, and then read failed"
        except DeliveryError as error:
            self.wrong.append(repr(error))
        else:
            self.ends.append("received")
        self.receiving = None

    # -- what happens ----------------------------------------------------------------------------------------------

    async def until(self, offset: int) -> None:
        """Let it receive up to `offset` bytes, and no more."""
        self.server.send_until = offset
        self.wake()
        await self.eventually(lambda: self.received >= min(offset, len(self.data)))

    @property
    def received(self) -> int:
        return self.incoming.progress.received if self.incoming is not None else 0

    def wake(self) -> None:
        for session in self.server.sessions:
            session.wake.set()

    async def eventually(self, condition: Callable[[], object]) -> None:
        """Wait until it holds, or nothing is received any more."""
        deadline = time.monotonic() + SECONDS
        while self.receiving is not None and not self.receiving.done() and not condition():
            if time.monotonic() > deadline:
                self.wrong.append("it stands still")
                return
            await asyncio.sleep(0.001)

    async def until_told(self, enough: Callable[[], bool] = lambda: False) -> None:
        """Wait until the server has heard how it ended, or it is enough."""
        deadline = time.monotonic() + SECONDS
        while not (enough() or self.waiting.done or self.waiting.declined or self.wrong):
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(0.001)

    async def happen(self, what: str) -> None:
        match what:
            case "cut":
                self.server.cut()
            case "flood of cuts":
                for _ in range(3):
                    self.server.cut()
                    await asyncio.sleep(0.005)
            case "go away":
                self.server.go_away(retry_after=0.01)
            case "hold":
                if self.incoming is not None:
                    self.incoming.hold()
                    await asyncio.sleep(0.005)
                    self.server.cut()
                    await asyncio.sleep(0.005)
                    self.incoming.release()
            case "cancel":
                if self.receiving is not None:
                    self.receiving.cancel()
            case "close" | "crash":
                await self.close(crash=what == "crash")
            case "raise":
                self.raises = True
            case "stall reader":
                await self.stall()
            case _:
                self.change_files(what)

    async def stall(self) -> None:
        """Have the reader take nothing while all that may come does, and the connection is another one."""
        self.reads.clear()
        self.server.send_until = None
        self.wake()
        await asyncio.sleep(0.02)
        self.server.cut()
        await asyncio.sleep(0.1)
        self.reads.set()

    def change_files(self, what: str) -> None:
        folder = self.directory / FOLDER
        parts = list(folder.glob("*.part"))
        if what == "take name" and not self.waiting.done:
            with contextlib.suppress(FileExistsError), (self.directory / "scan.tif").open("xb") as file:
                file.write(b"theirs")
        if what == "remove folder":
            for path in list(folder.glob("*")):
                path.unlink(missing_ok=True)
        for part in parts:
            with contextlib.suppress(FileNotFoundError):
                self.change_part(what, part)

    def change_part(self, what: str, part: Path) -> None:
        match what:
            case "remove part":
                part.unlink()
            case "cut part" | "grow part":
                self.tainted = True
                os.truncate(part, part.stat().st_size // 2 if what == "cut part" else part.stat().st_size + 100)
            case "replace part":
                self.tainted = True
                other = part.with_name("other")
                other.write_bytes(bytes(part.stat().st_size))
                os.replace(other, part)


class Checked(dict[str, str]):
    """Digests that clients said `done` with; each is looked into as it comes."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    def __setitem__(self, client: str, sha256: str) -> None:
        self._check()
        super().__setitem__(client, sha256)


async def whole(kind: str, size: int, steps: list[Step]) -> list[str]:
    server = CoreServer()
    server.chunk_size = CHUNK
    await server.start()
    try:
        with tempfile.TemporaryDirectory(dir=FAST) as name:
            run = Run(server, kind, POOL[:size], Path(name))
            await one(run, steps)
            assert not run.wrong, run.wrong
            return run.ends
    finally:
        await server.stop()


async def one(run: Run, steps: list[Step]) -> None:
    server = run.server
    server.send_until = 0
    await run.begin()
    for step in sorted(steps, key=lambda step: step.at):
        if run.receiving is not None and run.receiving.done():
            await run.ended()
        if run.receiving is None:
            await run.begin()
        await run.until(int(step.at * len(run.data)) // CHUNK * CHUNK)
        await run.happen(step.what)
    server.send_until = None
    run.wake()
    # To the end: what failed is begun again, until all was received, or its bytes are known to be wrong.
    for _ in range(len(steps) + 4):
        await run.ended()
        if run.client is not None and run.ends[-1] == "received":
            await run.until_told()
        if run.wrong or run.waiting.declined or (run.waiting.done and run.ends[-1] == "received"):
            break
        await run.begin()
        if run.receiving is None:
            break
    await run.close()
    assert run.wrong or run.waiting.done or (run.tainted and run.waiting.declined), run.ends


kinds: Any = st.sampled_from(["file", "file", "memory", "blocks"])
sizes = st.sampled_from([0, 1, CHUNK, CHUNK + 1, 3 * CHUNK, 11 * CHUNK + 7, 24 * CHUNK])


# Not shrunk: what fails on real connections may take its deadline each time.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)


@settings(max_examples=200, deadline=None, phases=PHASES, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=kinds, size=sizes, steps=st.lists(st.builds(Step, st.floats(0, 1), st.sampled_from(ANY + FILE)), max_size=5)
)
def test_done_means_exactly_these_bytes_in_every_sink(kind: str, size: int, steps: list[Step]) -> None:
    steps = [step for step in steps if kind == "file" or step.what in ANY]
    for end in asyncio.run(whole(kind, size, steps)):
        event(end)
