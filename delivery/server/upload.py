"""One upload on one connection: chunks go to the buffer, runs to workers, stored positions back to the receiver.

Chunks are collected first, so that 1 MiB and more go in one round trip. When everything is stored, the payload's digest is
requested until it is computed (PROTOCOL section 4).

Repeats requests that get no answer: tasks and wake-ups may be lost, and Redis may be flushed at any moment.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from delivery import dispatch
from delivery.buffer import chunks, leases
from delivery.buffer.stream import Stream
from delivery.errors import BufferUnavailable, IntegrityError, Refused, StaleLease, TransferAborted
from delivery.models import PayloadState, WaitingFor
from delivery.protocol.frames import Chunk, chunk_count
from delivery.protocol.receiver import ChunkRange, Receiver
from delivery.server.web_process import WebProcess
from delivery.transfers import digests, outcomes, uploads
from delivery.transfers.segments import StoreRequest
from delivery.transfers.uploads import FinishedUpload, Opened

logger = logging.getLogger(__name__)

BUFFER_RETRY_SECONDS = 0.5
LOOK_SECONDS = 0.05
BUFFER_PATIENCE_SECONDS = 30.0
STORAGE_RETRY_SECONDS = 1.0
MOST_STORAGE_FAILURES = 5
FINISH_SECONDS = 0.05  # that the last run waits for `finish`
FLUSH_BYTES = 1024 * 1024  # are worth it; what came since the last round trip began goes along
GATHER_SECONDS = 0.004  # that a chunk waits for more; on a slow line none comes within it
SEAL_RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Reports:
    """What a receiver of one upload tells its connection: `changed`, look for acks; `rewind` to a chunk that was lost.

    `moved_by` is given the worker that moved it. `confirm` is asked before a payload is completed: it raises `TransferAborted` where its sender is logged out.
    """

    changed: Callable[[], None]
    rewind: Callable[[Receiver, int], None]
    confirm: Callable[[], Awaitable[None]]
    moved_by: Callable[[str], None] = lambda worker: None


@dataclass(slots=True)
class PendingRequest:
    """A run that is to be stored: asked for `attempt` times, to be asked for again at `ask_at` (monotonic seconds)."""

    request: StoreRequest
    checksums: Sequence[int]
    attempt: int = 0
    ask_at: float = 0.0


class UploadReceiver:
    """Takes in one upload. Belongs to the event loop of its connection."""

    def __init__(self, process: WebProcess, receiver: Receiver, opened: Opened, reports: Reports) -> None:
        self.receiver = receiver
        self.opened = opened
        self.lease = opened.lease
        self.task: asyncio.Task[None] | None = None  # runs it
        self.worker = ""  # that moved it last
        self.worker_at = 0.0
        self._process = process
        self._reports = reports
        self._checksums: deque[int] = deque()  # of chunks not yet handed out, from `receiver.handed` on
        self._pending: deque[PendingRequest] = deque()
        self._woken = asyncio.Event()
        self._gatherer = ChunkGatherer(
            process.chunks, opened.payload, receiver, self._woken.set
        )  # no cycle: see `plain`
        self._lost = False
        self._rewinding = False
        self._superseded = False
        self._ended: str | None = None
        self._finished: FinishedUpload | None = None
        self._storage_failures = 0
        self._buffer_failed_at: float | None = None
        self._hurried = False
        self._completion = UploadCompletion(process, receiver, opened)
        self._confirmed = False
        self._asked = False  # for any run

    # -- from the connection -----------------------------------------------------------------------------------------

    @property
    def unflushed(self) -> int:
        """Bytes that are in this process's memory alone."""
        return self._gatherer.bytes

    def keep(self, chunk: Chunk) -> None:
        """Take a chunk that the receiver kept."""
        self._checksums.append(chunk.checksum)
        self._gatherer.add(chunk.data)

    def wake(self) -> None:
        """Look for what is due."""
        self._woken.set()

    def hurry(self) -> None:
        """Have all that was taken in stored now: the connection is about to be closed."""
        self._hurried = True
        self._woken.set()

    @property
    def settled(self) -> bool:
        """Whether all that was taken in is stored."""
        return self.receiver.stored >= self.receiver.received

    async def run(self) -> FinishedUpload:
        """Take in everything; return once the payload is complete.

        Raises `TransferAborted` where the transfer ended or must let go of this connection.
        """
        await self._process.subscriber.add(self.opened.payload.hex, self._on_wake)
        try:
            while True:
                self._woken.clear()
                if (finished := await self._step()) is not None:
                    return finished
                await self._sleep()
        finally:
            self._process.store_requests.note(self, 0)
            await self._process.subscriber.remove(self.opened.payload.hex, self._on_wake)

    async def detach(self) -> None:
        """Hand over what was taken in, so that it is not sent again: the connection is gone, or about to go."""
        await self.settle()
        try:
            while self._gatherer:
                await self._flush_some()
            # Nothing is kept of what the third nack gave up: the abort left the receiver's count as it was.
            while self._checksums and (run := self.receiver.rest(time.monotonic())) is not None:
                self._add_request(run)
            await self._ask(time.monotonic(), detached=True)
        except (BufferUnavailable, StaleLease) as error:
            logger.info("what was buffered of %s will be sent again: %s", self.opened.payload, error)

    async def settle(self) -> None:
        """Return once nothing is on its way into the buffer; to be asked when `task` has ended."""
        await self._gatherer.settle()

    # -- one round ---------------------------------------------------------------------------------------------------

    async def _step(self) -> FinishedUpload | None:
        # An earlier connection's `finish` may have completed it: `done` waits for the one of this connection.
        if self._finished is not None and self.receiver.finish is not None:
            return self._finished
        if self._ended is not None:
            raise TransferAborted(self._ended)
        if self._superseded:
            raise TransferAborted("taken_over", final=False)
        if self._lost:
            await self._rewind()
        try:
            await self._move()
            self._buffer_failed_at = None
        except BufferUnavailable as error:
            self._check_patience(error)
        return None

    async def _move(self) -> None:
        if self._gatherer.due(hurried=self._hurried):
            await self._flush_some()
        now = time.monotonic()
        while (run := self.receiver.rest(now) if self._hurried else self.receiver.next_run(now)) is not None:
            self._add_request(run)
        await self._ask(now)
        if self.receiver.complete:
            await self._finish()
        if (at := self.receiver.wake_at()) is not None and at <= now:
            self._reports.changed()  # an ack is due by time alone

    async def _finish(self) -> None:
        await self._confirm()
        finished = await self._completion.step(self.lease)
        if finished is not None:
            self._finished = finished
            self._woken.set()

    async def _confirm(self) -> None:
        if not self._confirmed:
            await self._reports.confirm()
            self._confirmed = True

    def _check_patience(self, error: BufferUnavailable) -> None:
        """Keep trying for a while: what is not flushed is in memory, bounded by the window."""
        now = time.monotonic()
        if self._buffer_failed_at is None:
            self._buffer_failed_at = now
            logger.warning("upload %s waits: %s", self.opened.payload, error)
        elif now - self._buffer_failed_at > BUFFER_PATIENCE_SECONDS:
            raise TransferAborted("busy", "the buffer does not answer", final=False) from error

    async def _flush_some(self) -> None:
        if self._process.credit.crowds(self.receiver):
            raise BufferUnavailable("uploads have more than their budget in Redis")
        await self._gatherer.flush(self.lease)

    async def below(self, limit: int) -> None:
        """Wait until less than `limit` bytes are in this process's memory alone."""
        await self._gatherer.below(limit)

    def _add_request(self, run: ChunkRange) -> None:
        receiver = self.receiver
        ends = receiver.size if receiver.size is not None and run.end == receiver.chunks else None
        request = StoreRequest(
            transfer=self.opened.transfer,
            payload=self.opened.payload,
            lease=self.lease,
            chunks=run,
            chunk_size=receiver.chunk_size,
            offset=receiver.offset(run.start),
            length=receiver.offset(run.end) - receiver.offset(run.start),
            ends=ends,
        )
        entry = PendingRequest(request, [self._checksums.popleft() for _ in range(run.start, run.end)])
        if ends is not None:
            entry.ask_at = time.monotonic() + FINISH_SECONDS  # its task may complete the payload too
        self._pending.append(entry)

    async def _ask(self, now: float, *, detached: bool = False) -> None:
        """Publish a task for each run that is due: for the first time, or again."""
        while self._pending and self._pending[0].request.chunks.end <= self.receiver.stored:
            self._pending.popleft()
        self._process.store_requests.note(self, 0 if detached else len(self._pending))
        hurried = detached or self._hurried or self.receiver.finish is not None
        for pending in list(self._pending):
            due = now >= pending.ask_at or (hurried and pending.attempt == 0)
            if due and pending.request.chunks.end <= self._gatherer.flushed:
                await self._ask_for(pending, detached=detached)

    async def _ask_for(self, pending: PendingRequest, *, detached: bool) -> None:
        payload, lease, run = self.opened.payload, pending.request.lease, pending.request.chunks
        if pending.attempt == 0:
            await chunks.aput_checksums(self._process.chunks, payload, lease, run, pending.checksums)
        else:
            await self._look()
            await chunks.akeep(payload, lease, run)
        wanted = replace(pending.request, again=pending.attempt > 0)
        if wanted.ends is not None and self.receiver.finish is not None and not detached:
            await self._confirm()
            wanted = self._completion.by_storing(wanted)
        if pending.attempt or detached:
            await self._process.publish(
                dispatch.STORE, wanted.arguments(), marker=wanted.marker, attempt=pending.attempt
            )
        else:
            await self._process.store_requests.ask(wanted, follows=self._asked)
        self._asked = True
        pending.ask_at = time.monotonic() + leases.marker_seconds(pending.attempt)
        pending.attempt += 1

    async def _look(self) -> None:
        """Ask the database what a lost wake-up would have told."""
        lease, position, state = await self._process.db(uploads.position, self.opened.transfer)
        self._moved(lease, position)
        if state != "live" and not self.receiver.complete:
            *_, failure = await self._process.db(outcomes.outcome, self.opened.payload)
            self._ended = failure or "cancelled"
        elif lease == self.lease and not await self._process.workers.alive():
            await self._process.db(uploads.waiting, self.opened.transfer, self.lease, WaitingFor.WORKER)

    async def _rewind(self) -> None:
        """Chunks are gone: fence what is in flight, and have the sender go back."""
        self._lost = False
        self._rewinding = True  # a wake-up may tell of our own new lease before the query returns it
        try:
            lease, position = await self._process.db(uploads.rewind, self.opened.transfer, self.lease)
        except StaleLease:
            raise TransferAborted("taken_over", final=False) from None
        finally:
            self._rewinding = False
        seq = self._seq_of(position)
        self._checksums.clear()
        self._pending.clear()
        self.lease = lease
        self.receiver.on_stored(seq)
        self._gatherer.rewind(seq)
        if seq < self.receiver.received:  # else it was stored meanwhile
            self._reports.rewind(self.receiver, seq)

    def _seq_of(self, position: int) -> int:
        if position == self.receiver.size:
            return chunk_count(position, self.receiver.chunk_size)
        return position // self.receiver.chunk_size

    # -- time and wake-ups -------------------------------------------------------------------------------------------

    async def _sleep(self) -> None:
        if self._woken.is_set() or (self._gatherer.due(hurried=self._hurried) and self._buffer_failed_at is None):
            return
        now = time.monotonic()
        wait = max(0.0, self._wake_at(now) - now)
        try:
            async with asyncio.timeout(wait):
                await self._woken.wait()
        except TimeoutError:
            pass

    def _wake_at(self, now: float) -> float:
        times = [now + 30.0]
        if self._buffer_failed_at is not None:
            times.append(now + BUFFER_RETRY_SECONDS)
        if (at := self.receiver.wake_at()) is not None:
            times.append(max(at, now + LOOK_SECONDS))
        times += [pending.ask_at for pending in self._pending if pending.request.chunks.end <= self._gatherer.flushed]
        if self.receiver.complete:
            times.append(self._completion.due_at)
        return min(times)

    def _on_wake(self, message: dict[str, Any]) -> None:
        event = message.get("event")
        if event == "stored":
            self._storage_failures = 0
            self._moved(message["lease"], message["position"])
        elif event == "lost":
            self._lost = self._lost or message["lease"] == self.lease
        elif event == "unstored" and message["lease"] == self.lease:
            self._not_stored(message["start"])
        elif event == "sealed":
            self.receiver.on_stored(self.receiver.received)  # its `stored` may have been lost
            self._finished = FinishedUpload(self.opened.payload, message["size"], message["sha256"])
        elif event == "unsealed":
            self._completion.again()
        elif event == "ended":
            self._ended = str(message.get("code") or "cancelled")
        if worker := message.get("worker"):  # only now: a wake-up that is not understood says nothing of its worker
            self.worker, self.worker_at = str(worker), time.monotonic()
            self._reports.moved_by(self.worker)
        self._woken.set()

    def _moved(self, lease: int, position: int) -> None:
        if self._rewinding:
            return
        if lease > self.lease:
            self._superseded = True
        elif lease == self.lease and not self._lost:
            self.receiver.on_stored(min(self._seq_of(position), self.receiver.received))
            self._process.credit.moved(self.receiver)
            self._reports.changed()

    def _not_stored(self, start: int) -> None:
        """Ask again soon; let go of the connection where Storage keeps failing."""
        self._storage_failures += 1
        if self._storage_failures > MOST_STORAGE_FAILURES:
            self._ended = "storage_unavailable"
        for pending in self._pending:
            if pending.request.chunks.start == start:
                pending.ask_at = time.monotonic() + STORAGE_RETRY_SECONDS * self._storage_failures


class ChunkGatherer:
    """The chunks that are in this process's memory alone. `flushed`: chunks below it are in the buffer. Belongs to one event loop.

    `wake` is called when it is time to `flush`.
    """

    def __init__(self, line: Stream, payload: UUID, receiver: Receiver, wake: Callable[[], None]) -> None:
        self.bytes = 0
        self.flushed = receiver.stored
        self._line = line
        self._payload = payload
        self._receiver = receiver
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._pending: deque[memoryview] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._due = False  # what is pending is enough, or has waited long enough
        self._drained = asyncio.Event()
        self._putting: asyncio.Future[None] | None = None

    def __bool__(self) -> bool:
        return bool(self._pending)

    def due(self, *, hurried: bool) -> bool:
        """Return whether to flush now. `hurried`: whatever is there."""
        return bool(self._pending) and (self._due or hurried)

    def add(self, data: memoryview) -> None:
        """Take a chunk's data."""
        self._pending.append(data)
        self.bytes += len(data)
        if self._timer is None or self._enough:
            self._wait_for_more()

    async def flush(self, lease: int) -> None:
        """Put all that waits into the buffer. Raises `BufferUnavailable`; nothing is forgotten then."""
        batch = list(self._pending)
        size = self.bytes
        work = chunks.aput(self._line, self._payload, lease, self._receiver.chunk_size, self.flushed, batch)
        self._putting = asyncio.ensure_future(work)
        self._putting.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(self._putting)
        for _ in batch:
            self._pending.popleft()
        self.bytes -= size
        self.flushed += len(batch)
        self._drained.set()
        self._wait_for_more()

    async def settle(self) -> None:
        """Return once nothing is on its way into the buffer: cancelling who flushed leaves that running."""
        if self._putting is not None:
            await asyncio.wait([self._putting])

    def rewind(self, seq: int) -> None:
        """Forget what is pending: chunks come again from `seq` on."""
        self._pending.clear()
        self.bytes, self.flushed = 0, seq
        self._drained.set()
        self._wait_for_more()

    async def below(self, limit: int) -> None:
        """Wait until less than `limit` bytes are in this process's memory alone."""
        while self.bytes >= limit and self._receiver.live:
            self._drained.clear()
            await self._drained.wait()

    @property
    def _enough(self) -> bool:
        """Whether there is a batch, or nothing more will come: all is here, or the sender waits for credit."""
        receiver = self._receiver
        return self.bytes >= FLUSH_BYTES or receiver.received >= receiver.limit or receiver.received == receiver.chunks

    def _wait_for_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due = None, False
        if self._pending and self._enough:
            self._now()
        elif self._pending:
            self._timer = self._loop.call_later(GATHER_SECONDS, self._now)

    def _now(self) -> None:
        self._due = True
        self._wake()


class UploadCompletion:
    """Has one payload sealed. Belongs to the event loop of its connection."""

    def __init__(self, process: WebProcess, receiver: Receiver, opened: Opened) -> None:
        self.due_at = 0.0  # monotonic seconds at which to `step` again
        self._process = process
        self._receiver = receiver
        self._opened = opened
        self._attempt = 0

    def again(self) -> None:
        """The task could not do it, or had to stop: ask for another soon."""
        self.due_at = time.monotonic() + SEAL_RETRY_SECONDS

    def by_storing(self, request: StoreRequest) -> StoreRequest:
        """Have the task that stores the last run complete the payload with it, if it can.

        It tells `sealed` before `stored`: who only hears that all is stored has it sealed at once.
        """
        promised = self._receiver.expected_digests()
        return request if len(promised) > 1 else replace(request, completes=True, sha256=next(iter(promised), ""))

    async def step(self, lease: int) -> FinishedUpload | None:
        """Ask for the digest if that is due; return the outcome if it is there already.

        Raises `TransferAborted` where the payload has ended, or a newer writer holds it.
        """
        if time.monotonic() < self.due_at:
            return None
        finished = await self._begin(lease) if self._attempt == 0 else await self._outcome()
        if finished is not None:
            return finished
        arguments = {"payload": self._opened.payload.hex}
        marker = dispatch.seal_marker(self._opened.payload)
        await self._process.publish(dispatch.SEAL, arguments, marker=marker, attempt=self._attempt)
        # Not doubling: sealing is long, and asking for one that runs costs no more than a look at its row.
        self.due_at = time.monotonic() + leases.FIRST_SECONDS
        self._attempt += 1
        return None

    async def _begin(self, lease: int) -> FinishedUpload | None:
        promised = self._receiver.expected_digests()
        if len(promised) > 1:  # the offer promised another one than `finish`
            raise TransferAborted("digest", "finish contradicts the offer")
        digest = next(iter(promised), None)
        try:
            await self._process.db(digests.begin, self._opened.transfer, lease, self._receiver.size or 0, digest)
        except StaleLease:
            finished = await self._outcome()
            if finished is None:
                raise TransferAborted("taken_over", final=False) from None
            return finished
        except Refused as refused:  # its size is learned only now
            raise TransferAborted("too_large", refused.message) from refused
        except IntegrityError as error:
            logger.error("upload %s: %s", self._opened.payload, error)
            raise TransferAborted("integrity", "stored bytes are missing", final=False) from error
        return None

    async def _outcome(self) -> FinishedUpload | None:
        """Ask the database what a lost wake-up would have told."""
        state, size, sha256, failure = await self._process.db(outcomes.outcome, self._opened.payload)
        if state == PayloadState.COMPLETE:
            return FinishedUpload(self._opened.payload, size, sha256)
        if state not in (PayloadState.STORING, PayloadState.SEALING):
            raise TransferAborted(failure or "cancelled")
        return None
