"""What outlives a connection: uploads, deliveries and how they ended, and what is counted and told about them.

`client` is the one host; `link`, `intake` and `deliveries` know it by this class only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from delivery.client.deliveries import Incoming
from delivery.client.sinks import Saved
from delivery.client.statistics import Statistics
from delivery.client.uploads import Upload
from delivery.errors import TransferAborted, UsageError
from delivery.protocol.backoff import Recovery
from delivery.protocol.messages import DeliveryOffer, Welcome

if TYPE_CHECKING:
    from delivery.client.link import Link

SETTLED_MOST = 10_000
THREADS = 8
Observer = Callable[[str, dict[str, Any]], None]


class Host:
    """Holds uploads and deliveries from connection to connection.

    `settled`: how deliveries ended, by transfer, should they be offered again. `pool`: the threads for files and digests.
    """

    def __init__(self, recovery: Recovery, groups: tuple[str, ...], observer: Observer | None) -> None:
        self.recovery = recovery
        self.user: str | None = None
        self.groups = groups
        self.statistics = Statistics()
        self.settled: OrderedDict[str, Saved | str] = OrderedDict()
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="delivery-client")
        self._observer = observer
        self._uploads: dict[str, Upload] = {}
        self._incoming: dict[str, Incoming] = {}
        self._expected: dict[str, asyncio.Future[Incoming]] = {}
        self._waiting: asyncio.Queue[Incoming | None] = asyncio.Queue()
        self._link: Link | None = None
        self._beside: set[asyncio.Future[Any]] = set()
        self._saving: set[Incoming] = set()
        self._welcomed = asyncio.Event()

    def wake(self) -> None:
        if self._link is not None:
            self._link.wake()

    def tell(self, event: str, **details: Any) -> None:
        """Tell the observer."""
        if self._observer is not None:
            self._observer(event, details)

    def welcomed(self, welcome: Welcome) -> None:
        self.user, self.groups = welcome.user, welcome.groups or self.groups
        self.recovery.initial, self.recovery.maximum = welcome.retry["initial"], welcome.retry["max"]
        self.statistics.connections += 1
        self._welcomed.set()
        self.tell(
            "connected",
            user=welcome.user,
            groups=list(welcome.groups),
            session=welcome.session,
            max_message=welcome.max_message,
        )

    def uploads_due(self, now: float) -> list[Upload]:
        """Return the uploads that are to be offered now, and forget those that ended."""
        due = []
        for transfer, upload in list(self._uploads.items()):
            if upload.due(now):
                due.append(upload)
            elif upload.done:
                del self._uploads[transfer]
        return due

    def resumed(self, transfer: str, offset: int, role: str, *, reached: int) -> None:
        """Tell that a transfer goes on at `offset`, and how much goes again of what had reached `reached` before."""
        self.statistics.resumes += 1
        self.tell("resumed", transfer=transfer, offset=offset, role=role, again=max(0, reached - offset))

    def note_sent(self, upload: Upload, offset: int, length: int) -> None:
        self.statistics.sent_bytes += length
        if offset < upload.highest_sent:
            self.statistics.resent_bytes += min(length, upload.highest_sent - offset)
        upload.highest_sent = max(upload.highest_sent, offset + length)

    def note_received(self, incoming: Incoming, offset: int, length: int) -> None:
        self.statistics.received_bytes += length
        if offset < incoming.highest_received:
            self.statistics.received_again_bytes += min(length, incoming.highest_received - offset)
        incoming.highest_received = max(incoming.highest_received, offset + length)
        self.progressed(length)

    def progressed(self, chunk_bytes: int) -> None:
        """Note that a chunk of `chunk_bytes` got through: the backoff begins anew, and a guessed chunk size is proven."""
        if (proven := self.recovery.progressed(chunk_bytes)) is not None:
            self.remember_ceiling(proven)

    def remember_ceiling(self, chunk_bytes: int) -> None:
        """Remember the largest chunk to try at this URL. `client` knows where."""

    def note_accepted(self, incoming: Incoming, position: int) -> None:
        if incoming.resumed_before or position:
            self.resumed(incoming.transfer, position, "delivery", reached=incoming.highest_received)
        incoming.resumed_before = True

    def incoming_for(self, offer: DeliveryOffer) -> Incoming:
        """Return what the program holds of this transfer; offers it to the program where nobody has taken it up."""
        incoming = self._incoming.get(offer.transfer)
        if incoming is None or incoming.done or incoming.abandoned:
            incoming = self._incoming[offer.transfer] = Incoming(self, offer, self.pool)
            expected = self._expected.pop(offer.payload, None)
            if expected is not None and not expected.done():
                incoming.claimed = True
                expected.set_result(incoming)
            else:
                self._waiting.put_nowait(incoming)
        return incoming

    def take_up(self, incoming: Incoming) -> None:
        """Go on with a delivery that was given up, when it is offered again. Raises `UsageError` where it was already."""
        if self._incoming.get(incoming.transfer) is not incoming:
            raise UsageError("it was offered again meanwhile: take that one")
        incoming.abandoned = False

    @contextlib.contextmanager
    def saving(self, incoming: Incoming) -> Iterator[None]:
        """Keep the threads until this has let go of its file."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._beside.add(ended)
        self._saving.add(incoming)
        try:
            yield
        finally:
            self._saving.discard(incoming)
            self._beside.discard(ended)
            ended.set_result(None)

    def claim(self, payload: str) -> asyncio.Future[Incoming]:
        """Return what will be the delivery of a payload, which then nobody else is given."""
        future: asyncio.Future[Incoming] = asyncio.get_running_loop().create_future()
        for incoming in self._incoming.values():
            if incoming.payload == payload and not (incoming.claimed or incoming.wanted or incoming.done):
                incoming.claimed = True
                future.set_result(incoming)
                return future
        self._expected[payload] = future
        return future

    def settle(self, transfer: str, outcome: Saved | str) -> None:
        """Remember how a delivery ended, should it be offered again because our answer was lost."""
        self.settled[transfer] = outcome
        self._incoming.pop(transfer, None)
        while len(self.settled) > SETTLED_MOST:
            self.settled.popitem(last=False)

    def refuse(self, incoming: Incoming, verdict: str) -> None:
        self.settle(incoming.transfer, verdict)
        self.detach(incoming, "declined" if verdict == "declined" else "cancelled", final=True)

    def detach(self, incoming: Incoming, code: str = "paused", *, final: bool = False) -> None:
        if self._link is not None and incoming.intake is not None:
            self._link.drop(incoming.intake, code, final=final)

    def lost(self, incoming: Incoming, error: TransferAborted) -> None:
        """The server ended a delivery, or gave it to a newer connection."""
        self._incoming.pop(incoming.transfer, None)
        incoming.fail(error)

    def background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # who waited may have gone
        return task

    async def keep_until_done(self, work: Coroutine[Any, Any, None]) -> None:
        """Await `work`, which goes on even if whoever waits for it is cancelled."""
        await asyncio.shield(self.background(work))
