"""Every kind of source under everything that can happen to an upload: Hypothesis plays network, server and producer.

A receipt means that the server has exactly the bytes of the source. Everything else goes on, or fails visibly where
something happened that no upload survives. The same machine must fail with each mistake that is seeded on purpose.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import os
import random
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from delivery.client import connect, upload
from delivery.client.chunk_ceilings import Ceilings
from delivery.client.producers import AsyncProducer
from delivery.client.sources import FileSource, IteratorSource
from delivery.client.upload import Upload, UploadSender
from delivery.errors import DeliveryError, IntegrityError, TransferAborted
from tests.client.feeding import KINDS, Feeding
from tests.client.proxy import Proxy
from tests.client.server import CoreServer

CHUNK = 4096
MOMENT_SECONDS = 0.002
END_SECONDS = 20.0
FILES = ["path", "open file"]
MEMORY = ["bytes", "file in memory"]
SETTINGS = settings(
    max_examples=200,
    stateful_step_count=15,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],  # shrinking would take minutes: what hangs takes END_SECONDS each time
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
HUNTING = settings(SETTINGS, max_examples=600)

sizes = st.sampled_from([0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK, 20 * CHUNK + 7, 60 * CHUNK])
windows = st.sampled_from([CHUNK, 4 * CHUNK, 64 * CHUNK])
# Those that are ended by being cancelled have more turns.
kinds = st.sampled_from([*FILES, *MEMORY, *KINDS, "stdin", "async generator", "async generator"])
positions = st.sampled_from([None, 0, 2 * CHUNK, 16 * CHUNK])
moments = st.integers(0, 8)


class Stdin:
    """A pipe, as standard input is one."""

    def __init__(self) -> None:
        self.given = bytearray()
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self.file = os.fdopen(reading, "rb")

    def payload(self) -> Any:
        return self.file

    def give(self, size: int) -> None:
        with suppress(BlockingIOError):  # nobody reads: nothing more goes in
            block = os.urandom(size)
            self.given += block[: os.write(self._writing, block)]

    def end(self) -> None:
        if self._writing >= 0:
            os.close(self._writing)
            self._writing = -1


class Sending(RuleBasedStateMachine):
    """One upload from a source of some kind, over real sockets through a proxy."""

    def __init__(self) -> None:
        super().__init__()
        self.exits = ExitStack()
        self.exits.enter_context(mock.patch.object(upload, "BACKOFF_INITIAL_SECONDS", 0.02))
        self.exits.enter_context(mock.patch.object(upload, "BACKOFF_MAX_SECONDS", 0.05))
        self.folder = Path(self.exits.enter_context(tempfile.TemporaryDirectory()))
        self.runner = self.exits.enter_context(asyncio.Runner())
        self.server = CoreServer()
        self.stream: Feeding | Stdin | None = None
        self.upload: Upload | None = None
        self.ended = False  # the source, by itself
        self.must_fail = False
        self.may_fail = False
        self.drop_done = False
        self.server.before_done = self._may_say_done

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    @initialize(
        kind=kinds,
        size=sizes,
        window=windows,
        segment=windows,
        until=positions,
        count=moments,
    )
    def begin(self, kind: str, size: int, window: int, segment: int, until: int | None, count: int) -> None:
        self.kind = kind
        self.server.store_until = until
        self.server.window, self.server.segment = window, segment
        payload = self._payload(size)
        self.run(self._connect(payload))
        if self.stream is not None:
            self.give(10_000, count)

    def _payload(self, size: int) -> Any:
        if self.kind in KINDS:
            self.stream = Feeding(self.kind)
        elif self.kind == "stdin":
            self.stream = Stdin()
            self.exits.callback(self.stream.file.close)
        if self.stream is not None:
            return self.stream.payload()
        self.data, self.ended = random.Random(size).randbytes(size), True
        self.path = self.folder / "file.bin"
        self.path.write_bytes(self.data)
        os.utime(self.path, (1_000_000, 1_000_000))  # so that every change shows
        if self.kind == "open file":
            return self.exits.enter_context(open(self.path, "rb"))
        return {"path": self.path, "bytes": self.data, "file in memory": io.BytesIO(self.data)}[self.kind]

    async def _connect(self, payload: Any) -> None:
        await self.server.start()
        self.proxy = Proxy(self.server.port)
        await self.proxy.start()
        ceilings = Ceilings(self.folder / "ceilings.json")
        self.client = connect(self.proxy.url, chunk_size=CHUNK, ceilings=ceilings)
        await self.client.__aenter__()
        self.upload = self.client.start(payload)

    def _may_say_done(self) -> bool:
        drop, self.drop_done = self.drop_done, False
        return not drop

    # -- time --------------------------------------------------------------------------------------------------------

    @rule(count=moments)
    def wait(self, count: int) -> None:
        self.run(asyncio.sleep(count * MOMENT_SECONDS))

    # -- the producer ------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.stream is not None and not self.ended)
    @rule(size=st.sampled_from([1, CHUNK - 1, CHUNK, 10_000, 3 * CHUNK]), count=moments)
    def give(self, size: int, count: int) -> None:
        """A pause is when this does not come."""
        for _ in range(count):
            self.stream.give(size)
        self.run(asyncio.sleep(0))

    @precondition(lambda self: self.stream is not None and not self.ended)
    @rule()
    def end_stream(self) -> None:
        self.ended = True
        self.stream.end()

    @precondition(lambda self: isinstance(self.stream, Feeding) and not self.ended)
    @rule()
    def break_stream(self) -> None:
        self.ended = self.may_fail = self.must_fail = True
        self.stream.fail(LookupError("the producer broke"))

    # -- the network and the server ----------------------------------------------------------------------------------

    @rule(count=moments)
    def cut(self, count: int) -> None:
        async def work() -> None:
            self.proxy.cut()
            await asyncio.sleep(count * MOMENT_SECONDS)

        self.run(work())

    @rule(count=moments)
    def be_away(self, count: int) -> None:
        """No connection succeeds for a while."""

        async def work() -> None:
            self.proxy.target, port = 1, self.proxy.target
            self.proxy.cut()
            await asyncio.sleep(count * MOMENT_SECONDS)
            self.proxy.target = port

        self.run(work())

    @rule()
    def go_away(self) -> None:
        self.server.go_away(retry_after=0.01)
        self.run(asyncio.sleep(MOMENT_SECONDS))

    @rule(code=st.sampled_from(["stalled", "busy", "storage_unavailable"]))
    def abort(self, code: str) -> None:
        for session in self.server.sessions:
            for receiver in list(session.core.receivers.values()):
                session.core.abort(receiver, code, final=False)
            session.wake.set()
        self.run(asyncio.sleep(0))

    @rule(until=positions)
    def store(self, until: int | None) -> None:
        """Take in all that the window lets pass, but store only so much."""
        self.server.store_until = until

    @rule()
    def lose(self) -> None:
        """What was taken in is gone before it was stored."""
        for session in self.server.sessions:
            for receiver in list(session.core.receivers.values()):
                if receiver.received > receiver.stored:
                    session.kept.pop(receiver.handle, None)
                    session.core.rewind(receiver, receiver.stored, "lost")
            session.wake.set()
        self.run(asyncio.sleep(0))

    @rule()
    def lose_done(self) -> None:
        self.drop_done = True

    @rule()
    def lose_stored(self) -> None:
        """The server has lost what it had acked: a file goes again from its start, a stream cannot."""

        async def work() -> None:
            self.proxy.cut()
            await asyncio.sleep(0)
            if not self.upload.done:
                self.may_fail = self.may_fail or self.stream is not None
                for session in self.server.sessions:
                    session.frozen = True
                    session.socket.transport.abort()
                self.server.uploads.clear()

        self.run(work())

    # -- the program -------------------------------------------------------------------------------------------------

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        async def work() -> None:
            (self.upload.pause if paused else self.upload.resume)()

        self.run(work())

    # -- the file ----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.kind in FILES and self.path.exists())
    @rule(how=st.sampled_from(["vanish", "replace"]))
    def unlink(self, how: str) -> None:
        """The upload has it open: it goes on with what it opened."""
        if how == "vanish":
            self.path.unlink()
        else:
            other = self.folder / "other.bin"
            other.write_bytes(b"other" * 1000)
            other.replace(self.path)
            self.path = other  # which is no more: nothing changes what is being sent

    @precondition(lambda self: self.kind in FILES and self.path.exists() and self.data)
    @rule(how=st.sampled_from(["grow", "shrink", "rewrite"]), share=st.floats(0, 1))
    def change(self, how: str, share: float) -> None:
        self.may_fail = True
        at = int(share * (len(self.data) - 1))
        with open(self.path, "r+b") as file:
            if how == "grow":
                file.truncate(len(self.data) + 1 + at)
            elif how == "shrink":
                file.truncate(at)
            else:
                file.seek(at)
                file.write(b"another content")

    # -- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def a_receipt_is_right(self) -> None:
        if self.upload is not None and self.upload.done:
            self.run(self._check())

    async def _check(self) -> None:
        try:
            receipt = await self.upload
        except (IntegrityError, TransferAborted, LookupError) as error:
            failure = error
        else:
            failure = None
        if failure is not None:
            assert self.may_fail, f"{self.kind} failed: {failure!r}"
            return
        expected = self.data if self.stream is None else bytes(self.stream.given)
        assert self.ended, f"a receipt before the end of {self.kind}"
        assert not self.must_fail, "a receipt, although the producer broke"
        assert (receipt.size, receipt.sha256) == (len(expected), hashlib.sha256(expected).hexdigest())
        stored = self.server.uploads.get(receipt.transfer)
        if stored is not None and stored.sha256 is not None:  # else it was lost after the receipt
            assert bytes(stored.data) == expected, f"{len(stored.data)} of {len(expected)} bytes"

    async def _finish(self) -> None:
        """Nothing goes wrong any more: it ends."""
        self.server.store_until = None
        self.upload.resume()
        if self.stream is not None and not self.ended:
            self.ended = True
            self.stream.end()
        async with asyncio.timeout(END_SECONDS):
            while not self.upload.done:
                await asyncio.sleep(MOMENT_SECONDS)
        await self._check()

    async def _close(self) -> None:
        async with asyncio.timeout(END_SECONDS):
            await self.client.close()
            await self.proxy.stop()
            await self.server.stop()

    def teardown(self) -> None:
        try:
            if self.upload is not None:
                self.run(self._finish())
        finally:
            if self.stream is not None:
                self.stream.end()
            if self.upload is not None:
                self.run(self._close())
            self.exits.close()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of connections: nobody wants to read of each."""
    logger = logging.getLogger("websockets")
    before, logger.level = logger.level, logging.CRITICAL
    yield
    logger.level = before


def test_a_receipt_means_exactly_these_bytes() -> None:
    run_state_machine_as_test(Sending, settings=SETTINGS)


# -- a check that cannot fail is a defect ------------------------------------------------------------------------------


async def _pull_of_the_connection(self: AsyncProducer, pool: Any) -> None:
    """The pull is cancelled with whoever waits for it, as it once was."""
    block = await anext(self._blocks, None)
    if block is not None:
        self.sha256.update(block)
    self._take(block)


async def _forgetful_batch(self: UploadSender, start: int, end: int) -> None:
    self._source.forget(start * self.sender.chunk_size)
    await _read_batch(self, start, end)


_read_batch = UploadSender._read_batch
MISTAKES = {
    "a pull that ends with its connection": (AsyncProducer, "pull", _pull_of_the_connection),
    "bytes forgotten before they are acked": (UploadSender, "_read_batch", _forgetful_batch),
    "a file that is not looked at again": (FileSource, "check", lambda self: None),
    "an end that comes early": (IteratorSource, "pulled", property(lambda self: self._end + CHUNK - 1)),
}


# The scheduling of threads and sockets is not replayed: what fails once may pass when Hypothesis tries it again.
FOUND = (AssertionError, TimeoutError, DeliveryError, Flaky)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_seeded_mistake_is_found(mistake: str) -> None:
    owner, name, wrong = MISTAKES[mistake]
    with mock.patch.object(owner, name, wrong), pytest.raises(FOUND):
        run_state_machine_as_test(Sending, settings=HUNTING)
