"""One incoming payload across connections: what a program holds of a delivery.

It knows what was offered, where its bytes go, and how it ended. Taking chunks on one connection is `intake`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delivery.client.file_sink import FileSink
from delivery.client.sinks import MemorySink, Saved, Sink, StreamSink
from delivery.client.uploads import Progress
from delivery.errors import DeliveryError, TransferAborted, UsageError
from delivery.protocol.messages import DeliveryOffer
from delivery.protocol.receiver import Receiver

if TYPE_CHECKING:
    from delivery.client.host import Host
    from delivery.client.intake import Intake

READ_LIMIT_BYTES = 67_108_864


class Incoming:
    """A payload that is offered to us: save it, read it, iterate over it, or decline it.

    Nothing is received before one of these is called. `name`, `content_type` and `meta` are the sender's words;
    `sender` is the address that the server vouches for, None for the site itself. `expires`: ISO 8601 or None.
    """

    def __init__(self, host: Host, offer: DeliveryOffer, pool: Executor) -> None:
        self.held = False
        self.claimed = False  # somebody asked for this very payload
        self.abandoned = False  # was being received, but whoever did has gone
        self.intake: Intake | None = None
        self.highest_received = 0
        self.resumed_before = False
        self._host = host
        self._offer = offer
        self._pool = pool
        self._sink: Sink | None = None
        self._on_progress: Callable[[Progress], None] | None = None
        self._verdict: str | None = None  # declined or cancelled
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
        receiver = self.intake.receiver if self.intake and self.intake.accepted else None
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
        sink = FileSink(Path(directory), self.transfer, name, self.size, pool=self._pool, expires=self.expires)
        with self._host.saving(self):
            try:
                saved = await self._into(sink, progress)
            except BaseException as error:
                gone = isinstance(error, TransferAborted) and error.final
                with contextlib.suppress(DeliveryError):  # what ended it says more
                    await self._host.keep_until_done(sink.discard() if gone else sink.close())
                raise
            await self._host.keep_until_done(sink.close())
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
        if self.intake and self.intake.accepted:
            self.intake.receiver.hold()

    def release(self) -> None:
        """Give credit again."""
        self.held = False
        if self.intake and self.intake.accepted and self.intake.receiver.live:
            self.intake.receiver.release()
            self._host.wake()

    def decline(self) -> None:
        """Say that this client does not want it; it is not offered to it again."""
        self._end("declined")

    def cancel(self) -> None:
        """Stop receiving for good and drop what came; this client is not offered it again."""
        self._end("cancelled")

    def _end(self, verdict: str) -> None:
        if self.done:
            return
        self._verdict = verdict
        self._host.refuse(self, verdict)
        self.fail(TransferAborted(verdict, f"{verdict} here"))
        if self._sink is not None:
            self._host.background(self._sink.discard())

    async def _into(self, sink: Sink, on_progress: Callable[[Progress], None] | None) -> Saved:
        if self._sink is not None:
            raise UsageError("it is being received already")
        if self.abandoned:
            self._host.take_up(self)
        self._sink, self._on_progress = sink, on_progress
        try:
            if self.intake is not None:
                self.intake.start(sink)
            return await asyncio.shield(self._outcome)
        finally:
            # Whoever waited has gone or has what it wanted: a later offer finds nobody, and is yielded again.
            try:
                if self.intake is not None:
                    intake = self.intake
                    if not self.done:
                        self.abandoned = True
                        self._host.detach(self)
                    await intake.closed_down()
            finally:
                self._sink = None

    # -- for link and intake ---------------------------------------------------------------------------------------

    @property
    def wanted(self) -> bool:
        """Whether somebody receives it at the moment."""
        return self._sink is not None and not self.done

    def attach(self, intake: Intake) -> Coroutine[Any, Any, None] | None:
        """Belong to this connection from now on; the result, if any, is to be run, and goes on receiving there."""
        before, self.intake = self.intake, intake
        if before is not None:
            return self._go_on(before, intake)
        self._start(intake)
        return None

    async def _go_on(self, before: Intake, intake: Intake) -> None:
        """Receive on, once nothing of the last connection touches the sink any more."""
        await before.closed_down()
        self._start(intake)

    def _start(self, intake: Intake) -> None:
        if self._sink is not None and self.intake is intake and not self.done:
            intake.start(self._sink)

    def accepted(self, position: int) -> None:
        self._host.note_accepted(self, position)
        self._tell(self.progress)

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
            self._host.detach(self)
            if not isinstance(error, Exception | asyncio.CancelledError):
                raise  # it is not for us: Ctrl-C
            return False
        return True

    def complete(self, saved: Saved) -> bool:
        """Note that all of it was received; return whether the server may be told."""
        if not self._tell(Progress(self.transfer, saved.size, saved.size, saved.size)):
            return False
        self._host.settle(self.transfer, saved)
        if not self._outcome.done():
            self._outcome.set_result(saved)
        return True

    def fail(self, error: BaseException) -> None:
        if not self._outcome.done():
            if isinstance(error, StopIteration):  # which no future can hold
                error, cause = RuntimeError(f"{type(error).__name__} where nothing iterates"), error
                error.__cause__ = cause
            self._outcome.set_exception(error)
