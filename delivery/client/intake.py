"""Writing behind: what comes for one delivery on one connection, handed to its sink run by run.

The core says when a run is due; the sink keeps it in a thread; only then does an ack say so.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from delivery.client.sinks import Saved, Sink
from delivery.errors import DeliveryError, IntegrityError
from delivery.protocol.connection import Connection
from delivery.protocol.receiver import Receiver, Terms
from delivery.protocol.states import State

if TYPE_CHECKING:
    from delivery.client.deliveries import Incoming

SEGMENT_BYTES = 4_194_304  # written in one go, and acked: a quarter of the default window
MAX_PAYLOAD_BYTES = 2**53 - 1


class Intake:
    """The receiving of `incoming` through `receiver`, on one connection. `give_back`: takes the data of a written chunk."""

    def __init__(
        self,
        incoming: Incoming,
        receiver: Receiver,
        core: Connection,
        *,
        window: int,
        wake: Callable[[], None],
        give_back: Callable[[memoryview], None],
    ) -> None:
        self.incoming = incoming
        self.receiver = receiver
        self.accepted = False
        self.closed = False
        self._core = core
        self._terms = Terms(window=window, segment_size=SEGMENT_BYTES, max_size=MAX_PAYLOAD_BYTES)
        self._wake_link = wake
        self._give_back = give_back
        self._kept: deque[tuple[int, memoryview]] = deque()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # -- for the link ----------------------------------------------------------------------------------------------

    def keep(self, seq: int, data: memoryview) -> None:
        self._kept.append((seq, data))
        # Waking for every chunk would cost more than writing it: the core says when there is work.
        receiver = self.receiver
        pending = (receiver.received - receiver.handed) * receiver.chunk_size
        if pending >= SEGMENT_BYTES or receiver.received >= receiver.limit:
            self._wake.set()

    def rewound(self) -> None:
        while self._kept and self._kept[-1][0] >= self.receiver.received:
            self._kept.pop()

    def poke(self) -> None:
        """Have another look: `finish` came, time went by, or credit may be given again."""
        self._wake.set()

    def start(self, sink: Sink) -> None:
        if self._task is None and not self.closed:
            self._task = asyncio.create_task(self._run(sink))

    def close(self) -> None:
        """The connection or the transfer is gone: what was not written yet comes again."""
        self.closed = True
        self._wake.set()

    async def closed_down(self) -> None:
        """Wait until nothing of this intake touches the sink any more."""
        self.close()
        task = self._task
        if task is not None and not task.done() and task is not asyncio.current_task():
            await asyncio.wait([task])

    # -- writing ---------------------------------------------------------------------------------------------------

    async def _run(self, sink: Sink) -> None:
        """Receive into `sink`. Whatever is raised fails this delivery alone, and whoever waits for it is told."""
        try:
            saved = await self._receive(sink)
            if saved is None:
                await sink.detach()
            else:
                self._say_done(saved)
        except IntegrityError as error:
            self._fail("digest", str(error), error, final=True)
        except DeliveryError as error:
            self._fail("storage_unavailable", "the receiver cannot store it", error, final=False)
        except BaseException as error:  # of the program's observer or our own: nobody else would ever hear of it
            self._fail("paused", "the receiver failed", error, final=False)
            if not isinstance(error, Exception | asyncio.CancelledError):
                raise

    def _fail(self, code: str, message: str, error: BaseException, *, final: bool) -> None:
        self.incoming.fail(error)
        self._abort(code, message, final=final)

    async def _receive(self, sink: Sink) -> Saved | None:
        """Take everything in; return None where the connection or the transfer ended before."""
        saved = await sink.open()
        if saved is not None or self.closed:
            return saved
        self.accepted = True
        held = self.incoming.held
        # Early data that came damaged is asked for again by the core; nothing of it was kept.
        self._core.accept(self.receiver, stored=sink.position, terms=self._terms, now=time.monotonic(), hold=held)
        self.incoming.accepted(sink.position)
        self._wake_link()
        while not self.closed:
            self._wake.clear()
            await self._write_due(sink)
            if self.closed:
                break
            if self.receiver.complete:
                if sink.full:  # done means that the reader has it
                    await self._until_ready(sink)
                    continue
                return await sink.finish(self.receiver.expected_digests())
            await self._wake.wait()
        # What came in whole and undamaged is kept, so that it need not come again.
        if rest := [data for _, data in self._kept]:
            self._kept.clear()
            await sink.write(rest)
        return None

    async def _write_due(self, sink: Sink) -> None:
        while not self.closed and (run := self.receiver.next_run(time.monotonic())) is not None:
            blocks = [self._kept.popleft()[1] for _ in range(run.end - run.start)]
            await sink.write(blocks)
            if not sink.keeps_blocks:
                for block in blocks:
                    self._give_back(block)
            del blocks
            if sink.full:
                await self._until_ready(sink)
            if self.receiver.live:
                self.receiver.on_stored(run.end)
                self.incoming.report(self.receiver)
                self._wake_link()

    async def _until_ready(self, sink: Sink) -> None:
        """Wait for a slow reader, but no longer than the connection lives."""
        waiting = asyncio.ensure_future(sink.ready())
        try:
            while not waiting.done() and not self.closed:
                closing = asyncio.ensure_future(self._wake.wait())
                await asyncio.wait([waiting, closing], return_when=asyncio.FIRST_COMPLETED)
                closing.cancel()
                if not self.closed:
                    self._wake.clear()
        finally:
            waiting.cancel()
            self._wake.set()

    def _say_done(self, saved: Saved) -> None:
        receiver = self.receiver
        if receiver.size not in (None, saved.size) or receiver.expected_digests() - {saved.sha256}:
            raise IntegrityError(f"{saved.size} bytes with the SHA-256 {saved.sha256} were saved, others are offered")
        if self.incoming.complete(saved) and receiver.live:
            self._core.done(receiver, size=saved.size, sha256=saved.sha256)
            self._wake_link()

    def _abort(self, code: str, message: str, *, final: bool) -> None:
        if not self.receiver.live or self.closed:
            return
        if self.receiver.state is State.OFFERED:
            self._core.reject(self.receiver, "declined" if final else "busy", message, retry_after=None)
        else:
            self._core.abort(self.receiver, code, message, final=final)
        self._wake_link()
