"""The outgoing payloads of a client, from connection to connection.

`Upload` is the handle that a program holds: it knows its source, how far the server stored it, and when it may be offered
again. `UploadSender` reads ahead for it on one connection. `Uploads` is the table of all.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import ParamSpec

from delivery.client.progress import Progress
from delivery.client.runtime import Runtime
from delivery.client.sources import Source
from delivery.errors import DeliveryError, IntegrityError, TransferAborted
from delivery.protocol import frames
from delivery.protocol.messages import UploadOffer
from delivery.protocol.sender import Sender
from delivery.websocket.frames import ROOM_BYTES, masked_frame

BACKOFF_INITIAL_SECONDS = 0.5
BACKOFF_MAX_SECONDS = 10.0
BATCH_BYTES = 1_048_576  # made ready at a time on the loop
THREAD_BATCH_BYTES = 2_097_152  # in a thread; handing over to it costs about as much as sending two chunks
P = ParamSpec("P")
DATA_AT = ROOM_BYTES + frames.HEADER_BYTES  # in the buffer that a chunk is read into


@dataclass(frozen=True, slots=True)
class Receipt:
    """The server has stored all of a payload and its digest agrees. `payload`: its id there; `size` in bytes."""

    transfer: str
    payload: str | None
    name: str
    size: int
    sha256: str


class Upload:
    """A running upload: `await` it for its `Receipt`; pause, resume or cancel it. All methods belong to its loop.

    Awaiting raises `Refused` or `TransferAborted` with the server's code, `ConnectionStopped` where the connection
    cannot come back, `IntegrityError` where the source changed or the server has other bytes, and what an iterator or
    the progress callback raised. Cancelling one who awaits does not end the upload.
    """

    def __init__(
        self,
        source: Source,
        offer: UploadOffer,
        *,
        resumed: bool,
        on_progress: Callable[[Progress], None] | None,
        runtime: Runtime,
    ) -> None:
        self.source = source
        self.offered_before = resumed
        self.paused = False
        self._offer = offer
        self._on_progress = on_progress
        self._runtime = runtime
        self.sending: UploadSender | None = None  # on the connection that lives
        self._resumed_before = False
        self._retry_at = 0.0
        self._highest_sent = 0
        self._must_tell = False  # cancelled while detached: the server is told on the next connection
        self._comparing: asyncio.Task[None] | None = None
        self._attempt = 0
        self._stored = 0
        self._outcome: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        # Nobody has to await a handle: without this, asyncio would complain of an exception that was never retrieved.
        self._outcome.add_done_callback(lambda outcome: outcome.cancelled() or outcome.exception())

    def __await__(self) -> Generator[None, None, Receipt]:
        return asyncio.shield(self._outcome).__await__()

    # -- for the program -------------------------------------------------------------------------------------------

    @property
    def transfer(self) -> str:
        """The id under which this upload can be resumed, also by a later process."""
        return self._offer.transfer

    @property
    def name(self) -> str:
        return self._offer.name

    @property
    def done(self) -> bool:
        """Whether it ended, well or not."""
        return self._outcome.done()

    @property
    def progress(self) -> Progress:
        """How far it is."""
        self._note_stored()
        received = max(self._stored, self.sending.sender.received_bytes if self.sending else 0)
        return Progress(self.transfer, self._stored, received, self.source.size)

    def _note_stored(self) -> None:
        if self.sending:
            self._stored = max(self._stored, self.sending.sender.acked_bytes)

    @property
    def waits_for_source(self) -> bool:
        """Whether everything that its iterator or pipe gave is safe with the server: only more of it gets this on."""
        return self.sending is not None and self.sending.waits_for_source

    def pause(self) -> None:
        """Send nothing more until `resume`; what is on its way is still stored."""
        self.paused = True
        if self.sending:
            self.sending.adjust()

    def resume(self) -> None:
        """Go on after `pause`."""
        self.paused = False
        if self.sending:
            self.sending.adjust()
        self._runtime.wake()

    def cancel(self) -> None:
        """End it for good: the server forgets what it has. Awaiting raises `TransferAborted` with `cancelled`."""
        if self.done:
            return
        if self.sending:
            self.sending.abort("cancelled", final=True)
        else:
            self._must_tell = self.offered_before
        self.fail(TransferAborted("cancelled", "cancelled here"))
        self._runtime.wake()

    def detach(self) -> None:
        """Stop, but let the server keep what it has, so that the same transfer id can be resumed later."""
        self._give_up(TransferAborted("paused", "detached here; it can be resumed", final=False))

    # -- for the connection ----------------------------------------------------------------------------------------------

    def due(self, now: float) -> bool:
        """Return whether it is to be offered now (monotonic seconds)."""
        if self.sending is not None or self._comparing is not None:
            return False
        return self._must_tell or (not self.done and not self.paused and now >= self._retry_at)

    def offer(self) -> UploadOffer:
        """Return what to offer. Raises `IntegrityError` where the source changed since it was opened."""
        if not self._must_tell:  # else it is over, and its source is closed
            self.source.check()
        return replace(self._offer, size=self.source.size)

    def fail_to_offer(self, error: Exception) -> None:
        """Fail, since its source or its offer is wrong. What the server has of it is to be cancelled."""
        self._must_tell = self.offered_before and not self._must_tell
        self.fail(error)

    def offered(self) -> bool:
        """Note that it is offered; return whether only to be cancelled at once."""
        self.offered_before = True
        cancelled, self._must_tell = self._must_tell, False
        return cancelled

    def attach(self, sender: Sender, *, abort: Callable[[UploadSender, str, bool], None]) -> UploadSender:
        """Belong to the connection of `sender` from now on. `abort`: ends it there, and tells the server."""
        self.sending = UploadSender(self, sender, pool=self._runtime.pool, wake=self._runtime.wake, abort=abort)
        self.sending.adjust()
        return self.sending

    def let_go(self, sending: UploadSender) -> None:
        """Belong to that connection no longer, but remember how far it is."""
        if self.sending is sending:
            self._note_stored()
            self.sending = None
        sending.close()

    def accepted(self, sender: Sender) -> None:
        """The server said where to go on."""
        if self._resumed_before or sender.acked:
            self._runtime.resumed(self.transfer, sender.acked_bytes, "upload", reached=self._highest_sent)
        self._resumed_before = True
        self.report(progressed=False)

    def sent(self, offset: int, length: int) -> None:
        """Note that `length` bytes from byte `offset` on were sent."""
        self._runtime.statistics.sent_bytes += length
        if offset < self._highest_sent:
            self._runtime.statistics.resent_bytes += min(length, self._highest_sent - offset)
        self._highest_sent = max(self._highest_sent, offset + length)

    def report(self, *, progressed: bool) -> None:
        """Tell the program how far it is."""
        if progressed:
            self._attempt = 0
        if self.done:
            return
        try:
            self._call_back(self.progress)
        except Exception as error:  # noqa: BLE001 - a program's callback may raise anything: its upload fails with it
            self._give_up(error)

    def postpone(self, retry_after: float | None) -> float:
        """Offer again after `retry_after` seconds, or after a backoff where the server named none; return the seconds."""
        if retry_after is None:
            most = min(BACKOFF_MAX_SECONDS, BACKOFF_INITIAL_SECONDS * 2.0 ** min(self._attempt, 10))
            retry_after = random.random() * most
        self._attempt += 1
        self._retry_at = time.monotonic() + retry_after
        return max(0.0, retry_after)

    def complete(self, size: int, sha256: str, payload: str | None, *, compared: bool) -> None:
        """The server has all of it. `compared`: it was told our digest, and its own agrees."""
        receipt = Receipt(self.transfer, payload, self.name, size, sha256)
        if compared:
            self._end_with(receipt)
        elif not self.done:
            self._comparing = self._runtime.background(self._compare(receipt))

    async def _compare(self, receipt: Receipt) -> None:
        """End with a receipt if that is what the source holds: the transfer may be an earlier one of something else."""
        try:
            digest = await self.source.digest(self._runtime.pool)
            self.source.check()
            if (digest, self.source.size) != (receipt.sha256, receipt.size):
                raise IntegrityError(
                    f"the server has other bytes under transfer {self.transfer}: send this as a new one"
                )
        except Exception as error:  # noqa: BLE001 - a program's iterator may raise anything: its upload fails with it
            self.fail(error)
        else:
            self._end_with(receipt)

    def _end_with(self, receipt: Receipt) -> None:
        self._stored = receipt.size
        self._settle()
        if self._outcome.done():
            return
        try:
            self._call_back(Progress(self.transfer, receipt.size, receipt.size, receipt.size))
        except Exception as error:  # noqa: BLE001 - a program's callback may raise anything: its upload fails with it
            self._outcome.set_exception(error)
        else:
            self._outcome.set_result(receipt)

    def _call_back(self, progress: Progress) -> None:
        if self._on_progress is None:
            return
        try:
            self._on_progress(progress)
        except (StopIteration, asyncio.CancelledError) as error:  # would mean something else to who awaits the upload
            raise RuntimeError(f"the progress callback raised {type(error).__name__}") from error

    def _give_up(self, error: Exception) -> None:
        """Fail here; what the server has can be resumed."""
        if self.done:
            return
        if self.sending:
            self.sending.abort("paused", final=False)
        self.fail(error)

    def fail(self, error: Exception) -> None:
        self._settle()
        if not self._outcome.done():
            self._outcome.set_exception(error)

    def _settle(self) -> None:
        if self.sending:
            self.sending.close()
            self.sending = None
        if self._comparing is not None and self._comparing is not asyncio.current_task():
            self._comparing.cancel()
        self.source.close()
        if self.source.producer is not None:
            self._runtime.background(self.source.producer.aclose())


@dataclass(frozen=True, slots=True)
class ReadyChunk:
    """A chunk that is ready: `frame` is what goes on the wire, `length` its data in bytes."""

    seq: int
    frame: bytes
    length: int


class UploadSender:
    """Sends `upload` on one connection: its chunks are made ready in a thread before their turn comes.

    A chunk is read straight behind the space of its header into a buffer that is used for all of them, and is hashed, has
    its checksum taken and is masked while it lies in the processor's cache: the loop's thread only writes what comes out.
    `abort` takes it off the connection and tells the server.
    """

    def __init__(
        self,
        upload: Upload,
        sender: Sender,
        *,
        pool: Executor,
        wake: Callable[[], None],
        abort: Callable[[UploadSender, str, bool], None],
    ) -> None:
        self.upload = upload
        self.sender = sender
        self.digest: str | None = None
        self._source = upload.source
        self._pool = pool
        self._wake = wake
        self._abort = abort
        self._ready: deque[ReadyChunk] = deque()
        self._buffer = bytearray()
        self._waiting = False  # its turn came and nothing was ready
        self._task: asyncio.Task[None] | None = None
        self._voided = False  # what the running task reads is no longer wanted

    # -- for the connection ----------------------------------------------------------------------------------------------

    def accepted(self) -> None:
        """The server said where to go on."""
        self._void()
        self._source.forget(self.sender.acked_bytes)
        self._source.resumed_at(self.sender.next_seq * self.sender.chunk_size, self._pool)

    def acked(self) -> None:
        self._source.forget(self.sender.acked_bytes)

    def next_chunk(self) -> ReadyChunk | None:
        """Return the chunk that is to be sent now, None while it is not read yet, or the payload ended or failed."""
        try:
            return self._next_chunk()
        except (OSError, DeliveryError) as error:
            self._fail(error)
            return None

    def _next_chunk(self) -> ReadyChunk | None:
        self._note_end()
        span = self.sender.next_span()
        if span is None:
            return None
        if self._ready and self._ready[0].seq != span.seq:
            self._void()
        if not self._ready:
            if self._in_memory and not self._task:
                self._ready.extend(self._read(span.seq, span.seq + 1))
            else:
                self._wait()
                self._read_ahead(span.seq)
                return None
        chunk = self._ready.popleft()
        self._read_ahead(chunk.seq + 1)
        return chunk

    def want_digest(self) -> None:
        """Have the digest computed for `finish`; the sender waits for it, unless it is known at once."""
        self.digest = self._source.digest_at_once()
        if self.digest is not None:
            return
        self._wait()
        if self._task is None:
            self._task = asyncio.create_task(self._run(self._compute_digest))

    def adjust(self) -> None:
        """Make the sender stand still or go on, after a pause or when something is ready."""
        self.sender.paused = self._waiting or self.upload.paused
        if not self.sender.paused:
            self._wake()

    def abort(self, code: str, *, final: bool) -> None:
        self._abort(self, code, final)

    def close(self) -> None:
        """Let go; a read that is under way in its thread ends by itself."""
        self._ready.clear()
        if self._task is not None:
            self._task.cancel()

    @property
    def waits_for_source(self) -> bool:
        """Whether only the producer of the payload can get this on: all that it gave is sent, and acked."""
        producer = self._source.producer
        return self._waiting and producer is not None and producer.pulling and not self.sender.in_flight

    @property
    def _in_memory(self) -> bool:
        return self._source.instant and self._source.size is not None

    # -- reading ---------------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        self._waiting = True
        self.adjust()

    def _void(self) -> None:
        self._ready.clear()
        self._voided = self._task is not None

    def _note_end(self) -> None:
        """Tell the sender where a payload of unknown size ends, before its last chunk or `finish` goes."""
        size, chunk_size = self._source.size, self.sender.chunk_size
        if self.sender.size is not None or size is None:
            return
        if frames.chunk_count(size, chunk_size) < self.sender.sent:
            raise IntegrityError(f"{self.upload.name} ends after {size} bytes, the server has more under this transfer")
        self.sender.end(size)

    def _read_ahead(self, first: int) -> None:
        """Start reading the next batch, where less than a batch is ready and there is credit for more."""
        batch_bytes = BATCH_BYTES if self._source.instant else THREAD_BATCH_BYTES
        batch = max(1, batch_bytes // self.sender.chunk_size)
        if self._task is not None or len(self._ready) > batch // 2 or (self._ready and self._in_memory):
            return
        start = self._ready[-1].seq + 1 if self._ready else first
        end = min(start + batch, self.sender.limit)
        if (size := self._source.size) is not None:
            end = min(end, frames.chunk_count(size, self.sender.chunk_size))
        if end > start:
            self._task = asyncio.create_task(self._run(self._read_batch, start, end))

    async def _run(self, work: Callable[P, Coroutine[None, None, None]], *args: P.args, **options: P.kwargs) -> None:
        """Run `work`. Called in here: a coroutine would never be awaited where the task is cancelled before its first step."""
        try:
            await work(*args, **options)
        except Exception as error:  # noqa: BLE001 - a program's iterator may raise anything: its upload fails with it
            self._task = None
            self._fail(error)
            return
        self._task = None
        if self._voided:
            self._voided = False
            self._void()
        self._waiting = False
        self.adjust()

    async def _read_batch(self, start: int, end: int) -> None:
        size = self.sender.chunk_size
        await self._source.prepare((start + 1) * size, self._pool)
        if self._voided:  # the server asked for other chunks, perhaps of another size
            return
        if self._source.size is None:  # what a slow producer gave goes at once
            end = min(end, self._source.pulled // size)
        start = max(start, self.sender.acked)  # what was acked meanwhile is forgotten
        if self._source.instant:
            chunks = self._read(start, end)
        else:
            chunks = await asyncio.get_running_loop().run_in_executor(self._pool, self._read, start, end)
        self._ready.extend(chunks)

    def _read(self, start: int, end: int) -> list[ReadyChunk]:
        """Read chunks `start` to `end` (exclusive), fewer where the payload ends. In a thread, one at a time."""
        chunks: list[ReadyChunk] = []
        chunk_size, size = self.sender.chunk_size, self._source.size
        for seq in range(start, end):
            wanted = chunk_size if size is None else min(chunk_size, size - seq * chunk_size)
            if wanted <= 0:
                break
            chunks.append(self._read_one(seq, seq * chunk_size, wanted))
        return chunks

    def _read_one(self, seq: int, offset: int, wanted: int) -> ReadyChunk:
        if len(self._buffer) < DATA_AT + wanted:
            self._buffer = bytearray(DATA_AT + wanted)
        data = memoryview(self._buffer)[DATA_AT : DATA_AT + wanted]
        length = self._source.read_into(data, offset)
        if length < wanted and self._source.size is not None:
            raise IntegrityError(f"{self.upload.name} became shorter while it was sent: send it again")
        frames.HEADER.pack_into(self._buffer, ROOM_BYTES, self.sender.handle, seq, frames.checksum(data[:length]))
        return ReadyChunk(seq, masked_frame(self._buffer, DATA_AT + length), length)

    def _fail(self, error: Exception) -> None:
        self._abort(self, "cancelled", True)
        self.upload.fail(_readable(error, self.upload.name))

    async def _compute_digest(self) -> None:
        digest = await self._source.digest(self._pool)
        self._source.check()
        self.digest = digest


def _readable(error: Exception, name: str) -> Exception:
    if isinstance(error, OSError):
        return IntegrityError(f"cannot read {name}: {error.strerror or error}")
    return error


class Uploads:
    """The uploads of one client, from connection to connection."""

    def __init__(self) -> None:
        self._running: dict[str, Upload] = {}  # by transfer

    def add(self, upload: Upload) -> None:
        """Have the connection offer it."""
        self._running[upload.transfer] = upload

    def sends(self, transfer: str) -> bool:
        """Return whether this transfer is being sent."""
        return (running := self._running.get(transfer)) is not None and not running.done

    def due(self, now: float) -> list[Upload]:
        """Return the uploads that are to be offered now (monotonic seconds), and forget those that ended."""
        due = []
        for transfer, upload in list(self._running.items()):
            if upload.due(now):
                due.append(upload)
            elif upload.done:
                del self._running[transfer]
        return due

    def end(self, error: Exception) -> None:
        """Fail them all: no connection comes any more."""
        for upload in list(self._running.values()):
            upload.fail(error)
        self._running.clear()
