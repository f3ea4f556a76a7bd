"""The incoming payloads of a client, from connection to connection.

`Incoming` is a program's handle of one: its offer, the destination of its bytes, its end. `DownloadReceiver` receives its
chunks on one connection and writes them. `Downloads` is the table of all.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

from delivery.client.file_sink import FileSink
from delivery.client.progress import Progress
from delivery.client.runtime import Runtime
from delivery.client.sinks import MemorySink, Saved, Sink, StreamSink
from delivery.errors import DeliveryError, IntegrityError, TransferAborted, UsageError
from delivery.protocol.connection import Connection
from delivery.protocol.messages import DeliveryOffer
from delivery.protocol.receiver import Receiver, Terms
from delivery.protocol.states import State

READ_LIMIT_BYTES = 67_108_864
SEGMENT_BYTES = 4_194_304  # written in one go, and acked: a quarter of the default window
MAX_PAYLOAD_BYTES = 2**53 - 1
SETTLED_MOST = 10_000


class Incoming:
    """A payload that is offered to us: save it, read it, iterate over it, or decline it.

    Nothing is received before one of these is called. `name`, `content_type` and `meta` are the sender's words;
    `sender` is the address that the server vouches for, None for the site itself. `expires`: ISO 8601 or None.
    """

    def __init__(self, offer: DeliveryOffer, downloads: Downloads, runtime: Runtime) -> None:
        self.held = False
        self.claimed = False  # somebody asked for this very payload
        self.abandoned = False  # was being received, but whoever did has gone
        self.receiving: DownloadReceiver | None = None  # on the latest connection
        self._offer = offer
        self._downloads = downloads
        self._runtime = runtime
        self._sink: Sink | None = None
        self._highest_received = 0
        self._resumed_before = False
        self._on_progress: Callable[[Progress], None] | None = None
        self._outcome: asyncio.Future[Saved] = asyncio.get_running_loop().create_future()
        self._outcome.add_done_callback(lambda outcome: outcome.cancelled() or outcome.exception())

    def __repr__(self) -> str:
        return f"<Incoming {self.transfer} {self.size} bytes>"

    @property
    def transfer(self) -> str:
        return self._offer.transfer

    @property
    def payload(self) -> str:
        return self._offer.payload

    @property
    def name(self) -> str:
        """The name that the sender gave: for display, not for a path. `save` cleans it."""
        return self._offer.name

    @property
    def size(self) -> int | None:
        return self._offer.size

    @property
    def content_type(self) -> str:
        return self._offer.content_type

    @property
    def sender(self) -> str | None:
        return self._offer.sender

    @property
    def meta(self) -> Mapping[str, str]:
        return self._offer.meta

    @property
    def expires(self) -> str | None:
        return self._offer.expires

    @property
    def done(self) -> bool:
        return self._outcome.done()

    @property
    def sha256(self) -> str | None:
        """The digest of what was received, None before all of it was."""
        finished = self._outcome.done() and not self._outcome.cancelled() and not self._outcome.exception()
        return self._outcome.result().sha256 if finished else None

    @property
    def received_size(self) -> int | None:
        """The bytes that were received, None before all of them were."""
        finished = self._outcome.done() and not self._outcome.cancelled() and not self._outcome.exception()
        return self._outcome.result().size if finished else None

    @property
    def progress(self) -> Progress:
        stored = self._sink.position if self._sink else 0
        receiver = self.receiving.receiver if self.receiving and self.receiving.accepted else None
        received = max(stored, receiver.offset(receiver.received)) if receiver else stored
        return Progress(self.transfer, stored, received, self.size)

    # -- receiving -------------------------------------------------------------------------------------------------

    async def save(
        self, directory: Path | str, *, name: str | None = None, progress: Callable[[Progress], None] | None = None
    ) -> Path:
        """Save it as a file in `directory` and return its path.

        The name is cleaned, and numbered where it is taken. What an earlier process or connection received is kept and
        gone on from; where all of it was saved already, its path is returned, although the file may have been moved away
        since, and nothing is received again. Cancelling keeps what came; a later call goes on with the next connection.
        `progress` is called on the loop; what it raises ends this call, as cancelling does.

        Raises `TransferAborted` with the server's code: where that is final, what came is removed. `IntegrityError` where
        the digest differs, `StorageUnavailable` where the disk does not take it or another process changed what came,
        `ConnectionStopped`, `UsageError` where it is being received already or was offered again.
        """
        name = self.name if name is None else name
        sink = FileSink(Path(directory), self.transfer, name, self.size, pool=self._runtime.pool, expires=self.expires)
        with self._downloads.saving(self):
            try:
                saved = await self._into(sink, progress)
            except BaseException as error:
                gone = isinstance(error, TransferAborted) and error.final
                with contextlib.suppress(DeliveryError):  # what ended it says more
                    await self._runtime.keep_until_done(sink.discard() if gone else sink.close())
                raise
            await self._runtime.keep_until_done(sink.close())
        if saved.path is None:
            raise UsageError("it was not received into a file")
        return saved.path

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield its bytes block by block; the digest is checked after the last: what came before may be wrong.

        Leaving early detaches: it is offered again on the next connection.
        """
        sink = StreamSink()
        receiving = asyncio.create_task(self._into(sink, None))
        receiving.add_done_callback(lambda _: sink.end())
        try:
            async for block in sink.blocks():
                yield block
            await receiving
        finally:
            receiving.cancel()
            await asyncio.wait([receiving])

    async def read(self, limit: int = READ_LIMIT_BYTES) -> bytes:
        """Return its bytes, checked. Raises `UsageError` where they are more than `limit`: save those."""
        if self.size is not None and self.size > limit:
            raise UsageError(f"{self.size} bytes are more than the {limit} that fit into memory: use save")
        sink = MemorySink(limit)
        await self._into(sink, None)
        return sink.data

    def hold(self) -> None:
        """Give the sender no more credit until `release`; what it has it may use. Also before `save`."""
        self.held = True
        if self.receiving and self.receiving.accepted:
            self.receiving.receiver.hold()

    def release(self) -> None:
        """Give credit again."""
        self.held = False
        if self.receiving and self.receiving.accepted and self.receiving.receiver.live:
            self.receiving.receiver.release()
            self._runtime.wake()

    def decline(self) -> None:
        """Say that this client does not want it; it is not offered to it again."""
        self._end("declined")

    def cancel(self) -> None:
        """Stop receiving for good and drop what came; this client is not offered it again."""
        self._end("cancelled")

    def _end(self, verdict: str) -> None:
        if self.done:
            return
        self._downloads.settle(self.transfer, verdict)
        if self.receiving is not None:
            self.receiving.drop(verdict, final=True)
        self.fail(TransferAborted(verdict, f"{verdict} here"))
        if self._sink is not None:
            self._runtime.background(self._sink.discard())

    async def _into(self, sink: Sink, on_progress: Callable[[Progress], None] | None) -> Saved:
        if self._sink is not None:
            raise UsageError("it is being received already")
        if self.abandoned:
            self._downloads.take_up(self)
        self._sink, self._on_progress = sink, on_progress
        try:
            if self.receiving is not None:
                self.receiving.start(sink)
            return await asyncio.shield(self._outcome)
        finally:
            # Whoever waited has gone or has what it wanted: a later offer finds nobody, and is yielded again.
            try:
                if self.receiving is not None:
                    receiving = self.receiving
                    if not self.done:
                        self.abandoned = True
                        receiving.drop("paused", final=False)
                    await receiving.closed_down()
            finally:
                self._sink = None

    # -- for the connection and the receiver ---------------------------------------------------------------------------------------

    @property
    def wanted(self) -> bool:
        """Whether somebody receives it at the moment."""
        return self._sink is not None and not self.done

    def attach(self, receiving: DownloadReceiver) -> Coroutine[Any, Any, None] | None:
        """Belong to this connection from now on; the result, if any, is to be run, and goes on receiving there."""
        before, self.receiving = self.receiving, receiving
        if before is not None:
            return self._go_on(before, receiving)
        self._start(receiving)
        return None

    async def _go_on(self, before: DownloadReceiver, receiving: DownloadReceiver) -> None:
        """Receive on, once nothing of the last connection touches the sink any more."""
        await before.closed_down()
        self._start(receiving)

    def _start(self, receiving: DownloadReceiver) -> None:
        if self._sink is not None and self.receiving is receiving and not self.done:
            receiving.start(self._sink)

    def accepted(self, position: int) -> None:
        if self._resumed_before or position:
            self._runtime.resumed(self.transfer, position, "delivery", reached=self._highest_received)
        self._resumed_before = True
        self._tell(self.progress)

    def received(self, offset: int, length: int) -> None:
        """Note that `length` bytes came from byte `offset` on."""
        self._runtime.statistics.received_bytes += length
        if offset < self._highest_received:
            self._runtime.statistics.received_again_bytes += min(length, self._highest_received - offset)
        self._highest_received = max(self._highest_received, offset + length)
        self._runtime.progressed(length)

    def report(self, receiver: Receiver) -> None:
        if receiver.offset(receiver.stored) < (self.size or 0):
            self._tell(self.progress)

    def _tell(self, progress: Progress) -> bool:
        """Call the program's callback; return False where that raised, which ends the call that waits for us."""
        if self._on_progress is None or self.done:
            return True
        try:
            self._on_progress(progress)
        except BaseException as error:
            self.fail(error)
            if self.receiving is not None:
                self.receiving.drop("paused", final=False)
            if not isinstance(error, Exception | asyncio.CancelledError):
                raise  # it is not for us: Ctrl-C
            return False
        return True

    def complete(self, saved: Saved) -> bool:
        """Note that all of it was received; return whether the server may be told."""
        if not self._tell(Progress(self.transfer, saved.size, saved.size, saved.size)):
            return False
        self._downloads.settle(self.transfer, saved)
        if not self._outcome.done():
            self._outcome.set_result(saved)
        return True

    def fail(self, error: BaseException) -> None:
        if not self._outcome.done():
            if isinstance(error, StopIteration):  # which no future can hold
                error, cause = RuntimeError(f"{type(error).__name__} where nothing iterates"), error
                error.__cause__ = cause
            self._outcome.set_exception(error)


class DownloadReceiver:
    """Receives `incoming` on one connection: what comes is handed to its sink run by run.

    The core says when a run is due; the sink keeps it in a thread; only then does an ack say so. `drop` takes it off the
    connection and tells the server; `give_back` takes the data of a written chunk.
    """

    def __init__(
        self,
        incoming: Incoming,
        receiver: Receiver,
        core: Connection,
        *,
        window: int,
        wake: Callable[[], None],
        drop: Callable[[DownloadReceiver, str, bool], None],
        give_back: Callable[[memoryview], None],
    ) -> None:
        self.incoming = incoming
        self.receiver = receiver
        self.accepted = False
        self.closed = False
        self._core = core
        self._terms = Terms(window=window, segment_size=SEGMENT_BYTES, max_size=MAX_PAYLOAD_BYTES)
        self._wake_connection = wake
        self._drop = drop
        self._give_back = give_back
        self._kept: deque[tuple[int, memoryview]] = deque()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # -- for the connection ----------------------------------------------------------------------------------------------

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

    def drop(self, code: str, *, final: bool) -> None:
        """Stop receiving here, and tell the server with `code` where the connection still lives."""
        self._drop(self, code, final)

    def close(self) -> None:
        """The connection or the transfer is gone: what was not written yet comes again."""
        self.closed = True
        self._wake.set()

    async def closed_down(self) -> None:
        """Wait until nothing of this receiver touches the sink any more."""
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
        self._wake_connection()
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
                self._wake_connection()

    async def _until_ready(self, sink: Sink) -> None:
        """Wait for a slow reader, at most until the connection ends."""
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
            self._wake_connection()

    def _abort(self, code: str, message: str, *, final: bool) -> None:
        if not self.receiver.live or self.closed:
            return
        if self.receiver.state is State.OFFERED:
            self._core.reject(self.receiver, "declined" if final else "busy", message, retry_after=None)
        else:
            self._core.abort(self.receiver, code, message, final=final)
        self._wake_connection()


class Downloads:
    """The deliveries of one client, from connection to connection: those that run, and how others ended."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._running: dict[str, Incoming] = {}  # by transfer
        self._expected: dict[str, asyncio.Future[Incoming]] = {}  # by payload
        self._offered: asyncio.Queue[Incoming | None] = asyncio.Queue()  # for the program; None: no more come
        self._settled: OrderedDict[str, Saved | str] = OrderedDict()
        self._saving: set[Incoming] = set()

    # -- for the program -------------------------------------------------------------------------------------------

    async def next(self) -> Incoming | None:
        """Return the next payload that nobody has asked for, None where no more can come."""
        while (incoming := await self._offered.get()) is not None:
            if not incoming.done and not incoming.claimed:
                return incoming
        self._offered.put_nowait(None)  # for the next one who asks
        return None

    def claim(self, payload: str) -> asyncio.Future[Incoming]:
        """Return what will be the delivery of a payload, which then nobody else is given."""
        future: asyncio.Future[Incoming] = asyncio.get_running_loop().create_future()
        for incoming in self._running.values():
            if incoming.payload == payload and not (incoming.claimed or incoming.wanted or incoming.done):
                incoming.claimed = True
                future.set_result(incoming)
                return future
        self._expected[payload] = future
        return future

    def end(self, error: Exception) -> None:
        """Fail everything: no connection comes any more."""
        for incoming in [*self._running.values(), *self._saving]:
            incoming.fail(error)
        for expected in self._expected.values():
            if not expected.done():
                expected.set_exception(error)
        self._running.clear()
        self._expected.clear()
        self._offered.put_nowait(None)

    # -- for the connection ----------------------------------------------------------------------------------------

    def outcome(self, transfer: str) -> Saved | str | None:
        """Return how a delivery ended that is offered again: what was saved, or our refusal; None where it has not."""
        return self._settled.get(transfer)

    def offered(self, offer: DeliveryOffer) -> Incoming:
        """Return what the program holds of this transfer; offers it to the program where nobody has taken it up."""
        incoming = self._running.get(offer.transfer)
        if incoming is None or incoming.done or incoming.abandoned:
            incoming = self._running[offer.transfer] = Incoming(offer, self, self._runtime)
            expected = self._expected.pop(offer.payload, None)
            if expected is not None and not expected.done():
                incoming.claimed = True
                expected.set_result(incoming)
            else:
                self._offered.put_nowait(incoming)
        return incoming

    def lost(self, incoming: Incoming, error: TransferAborted) -> None:
        """The server ended a delivery, or gave it to a newer connection."""
        self._running.pop(incoming.transfer, None)
        incoming.fail(error)

    # -- for a delivery --------------------------------------------------------------------------------------------

    def take_up(self, incoming: Incoming) -> None:
        """Go on with a delivery that was given up, when it is offered again. Raises `UsageError` where it was already."""
        if self._running.get(incoming.transfer) is not incoming:
            raise UsageError("it was offered again meanwhile: take that one")
        incoming.abandoned = False

    @contextlib.contextmanager
    def saving(self, incoming: Incoming) -> Iterator[None]:
        """Keep the threads until this has let go of its file."""
        self._saving.add(incoming)
        try:
            with self._runtime.kept_open():
                yield
        finally:
            self._saving.discard(incoming)

    def settle(self, transfer: str, outcome: Saved | str) -> None:
        """Remember how a delivery ended, should it be offered again because our answer was lost."""
        self._settled[transfer] = outcome
        self._running.pop(transfer, None)
        while len(self._settled) > SETTLED_MOST:
            self._settled.popitem(last=False)
