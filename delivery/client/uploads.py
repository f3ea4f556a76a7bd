"""One outgoing payload across connections: the handle that a program holds, and what outlives a connection.

It knows its source, how far the server stored it, and when it may be offered again. What is read ahead on one
connection is `feed`'s; the socket is `link`'s.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from delivery.client.sources import Source
from delivery.errors import TransferAborted
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
    cannot come back, `IntegrityError` where the source changed. Cancelling one who awaits does not end the upload.
    """

    def __init__(
        self,
        source: Source,
        offer: UploadOffer,
        *,
        resumed: bool,
        on_progress: Callable[[Progress], None] | None,
        wake: Callable[[], None],
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
        if self.done:
            return
        if self.feed:
            self.feed.abort("paused", final=False)
        self.fail(TransferAborted("paused", "detached here; it can be resumed", final=False))

    # -- for the link ----------------------------------------------------------------------------------------------

    def due(self, now: float) -> bool:
        """Return whether it is to be offered now (monotonic seconds)."""
        if self.feed is not None:
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
        if self._on_progress and not self.done:
            self._on_progress(self.progress)

    def postpone(self, retry_after: float | None) -> None:
        """Offer again after `retry_after` seconds, or after a backoff where the server named none."""
        if retry_after is None:
            most = min(BACKOFF_MAX_SECONDS, BACKOFF_INITIAL_SECONDS * 2.0 ** min(self._attempt, 10))
            retry_after = random.random() * most
        self._attempt += 1
        self.retry_at = time.monotonic() + retry_after

    def complete(self, size: int, sha256: str, payload: str | None) -> None:
        self._stored = size
        self.source.size = size
        self._settle()
        if not self._outcome.done():
            if self._on_progress:
                self._on_progress(Progress(self.transfer, size, size, size))
            self._outcome.set_result(Receipt(self.transfer, payload, self.name, size, sha256))

    def fail(self, error: Exception) -> None:
        self._settle()
        if not self._outcome.done():
            self._outcome.set_exception(error)

    def _settle(self) -> None:
        if self.feed:
            self.feed.close()
            self.feed = None
        self.source.close()
