"""One outgoing payload across connections: the handle that a program holds, and what outlives a connection.

It knows its source, how far the server stored it, and when it may be offered again. What is read ahead on one
connection is `feed`'s; the socket is `link`'s.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from delivery.client.sources import Source
from delivery.errors import IntegrityError, TransferAborted
from delivery.protocol.messages import UploadOffer

if TYPE_CHECKING:
    from delivery.client.feed import Feed

BACKOFF_INITIAL_SECONDS = 0.5
BACKOFF_MAX_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Receipt:
    """The server has stored all of a payload and its digest agrees. `payload`: its id there; `size` in bytes."""

    transfer: str
    payload: str | None
    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a transfer is, in bytes: `stored` is safe with the receiver, `received` taken in. `size` may be None."""

    transfer: str
    stored: int
    received: int
    size: int | None


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
        wake: Callable[[], None],
        beside: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        pool: Executor,
    ) -> None:
        self.source = source
        self.offered_before = resumed
        self.resumed_before = False
        self.paused = False
        self.retry_at = 0.0
        self.highest_sent = 0
        self.feed: Feed | None = None
        self.must_tell = False  # cancelled while detached: the server is told on the next connection
        self._offer = offer
        self._on_progress = on_progress
        self._wake = wake
        self._beside = beside
        self._pool = pool
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
        sender = self.feed.sender if self.feed else None
        self._stored = max(self._stored, sender.acked_bytes if sender else 0)
        received = max(self._stored, sender.received_bytes if sender else 0)
        return Progress(self.transfer, self._stored, received, self.source.size)

    @property
    def waits_for_source(self) -> bool:
        """Whether everything that its iterator or pipe gave is safe with the server: only more of it gets this on."""
        return self.feed is not None and self.feed.waits_for_source

    def pause(self) -> None:
        """Send nothing more until `resume`; what is on its way is still stored."""
        self.paused = True
        if self.feed:
            self.feed.adjust()

    def resume(self) -> None:
        """Go on after `pause`."""
        self.paused = False
        if self.feed:
            self.feed.adjust()
        self._wake()

    def cancel(self) -> None:
        """End it for good: the server forgets what it has. Awaiting raises `TransferAborted` with `cancelled`."""
        if self.done:
            return
        if self.feed:
            self.feed.abort("cancelled", final=True)
        else:
            self.must_tell = self.offered_before
        self.fail(TransferAborted("cancelled", "cancelled here"))
        self._wake()

    def detach(self) -> None:
        """Stop, but let the server keep what it has, so that the same transfer id can be resumed later."""
        self._give_up(TransferAborted("paused", "detached here; it can be resumed", final=False))

    # -- for the link ----------------------------------------------------------------------------------------------

    def due(self, now: float) -> bool:
        """Return whether it is to be offered now (monotonic seconds)."""
        if self.feed is not None or self._comparing is not None:
            return False
        return self.must_tell or (not self.done and not self.paused and now >= self.retry_at)

    def offer(self) -> UploadOffer:
        """Return what to offer. Raises `IntegrityError` where the source changed since it was opened."""
        if not self.must_tell:  # else it is over, and its source is closed
            self.source.check()
        return replace(self._offer, size=self.source.size)

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

    def postpone(self, retry_after: float | None) -> None:
        """Offer again after `retry_after` seconds, or after a backoff where the server named none."""
        if retry_after is None:
            most = min(BACKOFF_MAX_SECONDS, BACKOFF_INITIAL_SECONDS * 2.0 ** min(self._attempt, 10))
            retry_after = random.random() * most
        self._attempt += 1
        self.retry_at = time.monotonic() + retry_after

    def complete(self, size: int, sha256: str, payload: str | None, *, compared: bool) -> None:
        """The server has all of it. `compared`: it was told our digest, and its own agrees."""
        receipt = Receipt(self.transfer, payload, self.name, size, sha256)
        if compared:
            self._end_with(receipt)
        elif not self.done:
            self._comparing = self._beside(self._compare(receipt))

    async def _compare(self, receipt: Receipt) -> None:
        """End with a receipt if that is what the source holds: the transfer may be an earlier one of something else."""
        try:
            digest = await self.source.digest(self._pool)
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
        if self.feed:
            self.feed.abort("paused", final=False)
        self.fail(error)

    def fail(self, error: Exception) -> None:
        self._settle()
        if not self._outcome.done():
            self._outcome.set_exception(error)

    def _settle(self) -> None:
        if self.feed:
            self.feed.close()
            self.feed = None
        if self._comparing is not None and self._comparing is not asyncio.current_task():
            self._comparing.cancel()
        self.source.close()
        if self.source.producer is not None:
            self._beside(self.source.producer.aclose())
