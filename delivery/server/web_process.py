"""The state that all connections of one web process share: database threads, wake-ups, caches, batches; and its going away.

Created at the first connection, on the event loop that serves it. Its tasks live as long as that loop.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from uuid import UUID

from django.db import DatabaseError

from delivery import auth, conf, dispatch
from delivery.auth import Login
from delivery.buffer import leases, pool
from delivery.buffer.pubsub import Subscriber
from delivery.buffer.stream import Stream
from delivery.errors import BufferUnavailable
from delivery.protocol.messages import UploadOffer
from delivery.server import flow_control
from delivery.server.batching import Batcher, Questions
from delivery.server.block_cache import BlockCache, ReaderTable
from delivery.server.channel import ControlChannel
from delivery.server.database_threads import DatabaseThreads, with_connections
from delivery.server.flow_control import CreditLedger
from delivery.server.neighbours import Neighbours
from delivery.server.policy_threads import PolicyThreads
from delivery.server.ports import Closable
from delivery.server.presence import LOOK_SECONDS, Presence
from delivery.server.rate_limits import ConnectionCounts, OfferRates
from delivery.server.store_requests import StoreRequests
from delivery.server.workers import Workers
from delivery.transfers import admission, deliveries, holders, inline, timeline
from delivery.transfers.admission import Admission
from delivery.transfers.deliveries import AcceptedDelivery, Received
from delivery.transfers.holders import Detached
from delivery.transfers.inline import SmallOffer
from delivery.transfers.segments import StoreRequest
from delivery.transfers.uploads import FinishedUpload

logger = logging.getLogger(__name__)

T = TypeVar("T")

FINISHED_SECONDS = 0.02  # an upload's sender waits for its commit, who has received something for nothing
EVENTS_SECONDS = 1.0
POSITIONS_SECONDS = 5.0
LOGINS_SECONDS = 5.0
MEMORY_SECONDS = 2.0
FULL = 0.9  # of Redis's maxmemory: from there on new offers wait
DRAIN_LOOK_SECONDS = 0.02


class WebProcess:
    """The shared parts. All methods belong to its event loop."""

    def __init__(self) -> None:
        options = conf.current()
        self.id = secrets.token_hex(8)
        self.subscriber = Subscriber()
        self.chunks, self.blocks = Stream(), Stream()  # neither waits for the other
        self.threads = DatabaseThreads(options.database_threads)
        self.db, self.change, self._write = self.threads.db, self.threads.change, self.threads.write
        self.cache = BlockCache(self, self.blocks, options.cache_size, self._staged)
        self.readers = ReaderTable(self.cache.note_dropped)
        self.presence = Presence(self, self.id)
        self.presence.neighbours = self._neighbours = Neighbours(self.id, self.subscriber, self.presence.tell_late)
        self.offers = OfferRates()
        self.small: Batcher[SmallOffer, FinishedUpload | None] = Batcher(self._take_small, "small uploads")
        self.accepted: Batcher[AcceptedDelivery, str] = Batcher(
            lambda batch: self._write(deliveries.accept, batch), "accepted deliveries"
        )
        self.received: Batcher[Received, None] = Batcher(
            lambda batch: self._write(deliveries.finish, batch), "finished deliveries", linger_seconds=FINISHED_SECONDS
        )
        self.detached: Batcher[Detached, None] = Batcher(
            lambda batch: self._write(holders.detach_all, batch), "detached transfers"
        )
        self.questions = Questions(self)
        self.policy = PolicyThreads(with_connections)
        self.workers = Workers()
        count, segment = self.workers.count, options.segment_size
        self.store_requests = StoreRequests(self._publish_stores, count, segment=segment)
        self.control = ControlChannel()
        self.credit = CreditLedger(options.buffer_budget, options.window, segment, count)
        self.buffer_full = False
        self.counts = ConnectionCounts()
        self.sockets: set[Closable] = set()  # what is to be closed before the process ends
        self.draining = False
        self._positions: dict[tuple[UUID, str], int] = {}
        self._publishers = ThreadPoolExecutor(2, thread_name_prefix="delivery-publish")
        self._tasks: list[asyncio.Task[None]] = []
        self._unfinished: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        self.subscriber.start()
        self._tasks = [
            asyncio.create_task(self.readers.run(), name="delivery drop"),
            asyncio.create_task(self._neighbours.run(), name="delivery neighbours"),
            asyncio.create_task(self._every(EVENTS_SECONDS, self._write_events), name="delivery events"),
            asyncio.create_task(self._every(POSITIONS_SECONDS, self.write_positions), name="delivery positions"),
            asyncio.create_task(self._look_after_memory(), name="delivery memory"),
            asyncio.create_task(self._every(flow_control.LOOK_SECONDS, self._look_at_credit), name="delivery credit"),
            asyncio.create_task(self._every(LOGINS_SECONDS, self.check_logins), name="delivery logins"),
            asyncio.create_task(self._every(LOGINS_SECONDS, self.presence.check_groups), name="delivery members"),
            asyncio.create_task(self._every(LOOK_SECONDS, self.presence.look), name="delivery presence"),
        ]

    async def stop(self) -> None:
        """Write what waits, and end every task and connection of the process. One failure keeps nothing else."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*self._unfinished, return_exceptions=True)
        steps: tuple[Callable[[], Awaitable[None]], ...] = (
            *(self.small.stop, self.accepted.stop, self.received.stop, self.detached.stop, self.questions.stop),
            *(self.presence.stop, self.control.stop, self._neighbours.leave, self.write_positions, self._write_events),
            *(self.subscriber.stop, self.chunks.close, self.blocks.close, pool.aclose),
        )
        for step in steps:
            try:
                await step()
            except Exception:
                logger.exception("%s fails; the process ends all the same", step.__qualname__)
        self.policy.stop()
        self.threads.stop()
        self._publishers.shutdown(wait=False)

    async def leave_all(self) -> None:
        """Close every socket of the process with 1001, take no new one, and return once they are gone.

        The caller bounds it: a peer that does not read is given up after 2 s.
        """
        self.draining = True
        sockets = list(self.sockets)
        logger.info("going away: %d connections", len(sockets))
        await asyncio.gather(*(socket.leave("server_draining") for socket in sockets), return_exceptions=True)
        while self.sockets:
            await asyncio.sleep(DRAIN_LOOK_SECONDS)
        await self.stop()

    # -- work for connections ----------------------------------------------------------------------------------------

    async def admit(self, user: Any, offer: UploadOffer) -> Admission | None:
        """Return what `admission.ask` does, in a thread that never writes. Raises `Refused`."""
        return await self.policy.ask(user.pk, offer.transfer, lambda: admission.ask(user, offer))

    async def admit_small(self, user: Any, offer: UploadOffer) -> Admission:
        """Return what `admission.ask_small` does; offers to the same addresses that come together are asked for once."""
        return await self.policy.ask(user.pk, offer.to, lambda: admission.ask_small(user, offer))

    def see_through(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Start `work` and return what to await. Cancelling that leaves it running; `stop` waits for it.

        It starts here and not with the first await: a caller whose connection is gone may never come to that.
        """
        task = asyncio.ensure_future(work)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return asyncio.shield(task)

    async def _take_small(self, batch: Sequence[SmallOffer]) -> list[FinishedUpload | None]:
        taken = await self._write(inline.store_whole, batch)
        self.presence.tell(taken.arrivals)
        return taken.outcomes

    async def publish(self, task: str, arguments: dict[str, Any], *, marker: str, attempt: int = 0) -> bool:
        """Publish a task unless somebody just did; return whether it was published.

        Raises `BufferUnavailable`. Cancelling leaves it running to its end: a marker without its task would keep
        others from asking.
        """
        publishing = asyncio.ensure_future(self._publish(task, arguments, marker, attempt))
        publishing.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(publishing)

    async def _publish(self, task: str, arguments: dict[str, Any], marker: str, attempt: int) -> bool:
        if not await leases.aclaim(marker, attempt=attempt):
            return False
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._publishers, dispatch.publish, task, arguments)
        return True

    async def _publish_stores(self, orders: Sequence[StoreRequest]) -> None:
        """Publish one task for all those of `orders` that nobody just asked for."""
        claimed = await leases.aclaim_first([order.marker for order in orders])
        wanted = [order.arguments() for order, ours in zip(orders, claimed, strict=True) if ours]
        if wanted:
            arguments = {**wanted[0], "more": wanted[1:]} if wanted[1:] else wanted[0]
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._publishers, dispatch.publish, dispatch.STORE, arguments)

    def _staged(self, payload: UUID, worker: str) -> None:
        """Tell the recipients of a payload which worker has just staged a range of it, where that one drains."""
        if self.workers.draining_since(worker) is not None:
            self.presence.staged(payload, worker)

    def note_position(self, transfer: UUID, client: str, position: int) -> None:
        """Note how far a client is, in bytes; written with all others within 5 s."""
        self._positions[transfer, client] = position

    def forget_position(self, transfer: UUID, client: str) -> None:
        """Write no position of a client that has everything: that says more."""
        self._positions.pop((transfer, client), None)

    async def write_positions(self) -> None:
        """Write all positions that were noted."""
        noted, self._positions = self._positions, {}
        if noted:
            await self._write(deliveries.note_positions, noted)

    async def _look_after_memory(self) -> None:
        await self.check_memory()  # at once: after a restart everybody comes back in the first second
        await self._every(MEMORY_SECONDS, self.check_memory)

    async def check_memory(self) -> None:
        """See how full Redis is: the uploads' budget is at most half of it."""
        try:
            used, most = await pool.amemory()
        except BufferUnavailable as error:
            logger.warning("%s", error)
            return
        budget = conf.current().buffer_budget
        self.credit.budget = min(budget, most // 2) if most else budget
        self.buffer_full = bool(most) and used > FULL * most

    async def _look_at_credit(self) -> None:
        self.credit.look(time.monotonic())

    async def check_logins(self) -> None:
        """Close every connection whose login no longer holds."""
        held = [(socket, socket.login) for socket in self.sockets if socket.login is not None]
        if held:
            valid = await self.db(auth.still_valid, [one for _, one in held])
            for (socket, one), holds in zip(held, valid, strict=True):
                if not holds:
                    await self._revoke(socket, one)

    async def _revoke(self, socket: Closable, ended: Login) -> None:
        try:
            socket.revoke(await self.db(auth.end_of, ended))
        except Exception:  # whatever it is: the others are to be closed all the same
            logger.exception("a connection whose login does not hold is not closed")

    async def _write_events(self) -> None:
        await self._write(timeline.write)

    async def _every(self, seconds: float, action: Callable[[], Any]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await action()
            except DatabaseError as error:
                logger.warning("the database does not answer: %s", type(error).__name__)
            except Exception:  # whatever it is: nobody would look at logins any more
                logger.exception("%s fails; it is tried again", action.__name__)


_processes: dict[asyncio.AbstractEventLoop, WebProcess] = {}


def current() -> WebProcess:
    """Return the running event loop's process object, made at the first call."""
    loop = asyncio.get_running_loop()
    if loop not in _processes:
        _processes[loop] = WebProcess()
        _processes[loop].start()
    return _processes[loop]


def existing() -> WebProcess | None:
    """Return the running event loop's process object, None where no connection ever came."""
    return _processes.get(asyncio.get_running_loop())


async def drain_process() -> None:
    """Do what `WebProcess.leave_all` does for the running event loop's process, if any connection ever came."""
    found = existing()
    if found is not None:
        await found.leave_all()
