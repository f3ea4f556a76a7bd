"""What all connections of one web process share: threads for the database, wake-ups, caches, batches.

Made at the first connection, on the event loop that serves it; its tasks live as long as that loop.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, Protocol, TypeVar
from uuid import UUID

from django.db import DatabaseError, connections

from delivery import auth, conf, dispatch
from delivery.auth import Login
from delivery.buffer import leases, pool, registry
from delivery.buffer.pubsub import Subscriber
from delivery.buffer.stream import Stream
from delivery.errors import BufferUnavailable
from delivery.protocol.messages import UploadOffer
from delivery.server import flow_control
from delivery.server.batching import Batcher
from delivery.server.block_cache import BlockCache
from delivery.server.channel import Hearing
from delivery.server.draining_workers import DrainingWorkers
from delivery.server.flow_control import CreditLedger
from delivery.server.lookout import LOOK_SECONDS, Lookout
from delivery.server.neighbours import Neighbours
from delivery.server.policy_threads import PolicyThreads
from delivery.server.presence import Teller
from delivery.server.questions import Questions
from delivery.server.rate_limits import Connections, OfferRates
from delivery.server.readers import ReaderTable
from delivery.server.store_requests import StoreTasks
from delivery.transfers import admission, deliveries, holders, small, sql, timeline
from delivery.transfers.admission import Admission
from delivery.transfers.deliveries import AcceptedDelivery, Received
from delivery.transfers.holders import Detached
from delivery.transfers.segments import StoreRequest
from delivery.transfers.small import SmallOffer
from delivery.transfers.uploads import FinishedUpload

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

FINISHED_SECONDS = 0.02  # an upload's sender waits for its commit, who has received something for nothing
EVENTS_SECONDS = 1.0
POSITIONS_SECONDS = 5.0
LOGINS_SECONDS = 5.0
MEMORY_SECONDS = 2.0
FULL = 0.9  # of Redis's maxmemory: from there on new offers wait
WORKERS_SECONDS = 2.0
COMPLAIN_SECONDS = 60.0


class Leaver(Protocol):
    """A connection that can be told to go away. `login`: who is at its other end, None where the site looks after that."""

    login: Login | None

    async def leave(self, reason: str) -> None: ...

    def revoke(self, reason: str) -> None: ...


class Process:
    """The shared parts. All methods belong to its event loop."""

    def __init__(self) -> None:
        options = conf.current()
        self.id = secrets.token_hex(8)
        self.subscriber = Subscriber()
        self.chunks, self.blocks = Stream(), Stream()  # neither waits for the other
        self.cache = BlockCache(self, options.cache_size)
        self.readers = ReaderTable(self.cache.note_dropped)
        self.lookout = Lookout(self)
        self.offers = OfferRates()
        self.teller = Teller(self)
        self.neighbours = Neighbours(self.id, self.subscriber, self.teller.tell_late)
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
        self.policy = PolicyThreads(_with_connections)
        count, segment = self._count_workers, options.segment_size
        self.store_tasks = StoreTasks(self._publish_stores, count, segment=segment)
        self.hearing = Hearing()
        self.credit = CreditLedger(options.buffer_budget, options.window, segment, count)
        self.buffer_full = False
        self.connections = Connections()
        self.sessions: set[Leaver] = set()  # what is to be closed before the process ends
        self.draining = False
        self.draining_workers = DrainingWorkers()
        self._positions: dict[tuple[UUID, str], int] = {}
        self._workers: frozenset[str] = frozenset()
        self._workers_at = -WORKERS_SECONDS
        self._complained_at = -COMPLAIN_SECONDS
        self._threads = ThreadPoolExecutor(options.database_threads, thread_name_prefix="delivery-db")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="delivery-write")
        self._publishers = ThreadPoolExecutor(2, thread_name_prefix="delivery-publish")
        self._tasks: list[asyncio.Task[None]] = []
        self._unfinished: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        self.subscriber.start()
        self._tasks = [
            asyncio.create_task(self.readers.run(), name="delivery drop"),
            asyncio.create_task(self.neighbours.run(), name="delivery neighbours"),
            asyncio.create_task(self._every(EVENTS_SECONDS, self._write_events), name="delivery events"),
            asyncio.create_task(self._every(POSITIONS_SECONDS, self.write_positions), name="delivery positions"),
            asyncio.create_task(self._look_after_memory(), name="delivery memory"),
            asyncio.create_task(self._every(flow_control.LOOK_SECONDS, self._look_at_credit), name="delivery credit"),
            asyncio.create_task(self._every(LOGINS_SECONDS, self.check_logins), name="delivery logins"),
            asyncio.create_task(self._every(LOGINS_SECONDS, self.check_groups), name="delivery members"),
            asyncio.create_task(self._every(LOOK_SECONDS, self.lookout.look), name="delivery lookout"),
        ]

    async def stop(self) -> None:
        """Write what waits, and end every task and connection of the process. One failure keeps nothing else."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*self._unfinished, return_exceptions=True)
        steps: tuple[Callable[[], Awaitable[None]], ...] = (
            *(self.small.stop, self.accepted.stop, self.received.stop, self.detached.stop, self.questions.stop),
            *(self.teller.stop, self.hearing.stop, self.neighbours.leave, self.write_positions, self._write_events),
            *(self.subscriber.stop, self.chunks.close, self.blocks.close, pool.aclose),
        )
        for step in steps:
            try:
                await step()
            except Exception:
                logger.exception("%s fails; the process ends all the same", step.__qualname__)
        self.policy.stop()
        for threads in (self._threads, self._writer, self._publishers):
            threads.shutdown(wait=False)

    async def db(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function`, which talks to the database, in one of our threads.

        Not asgiref's thread: there, one consumer's slow query holds up all the others (channels#2132). Cancelling the
        caller leaves the function running to its end.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: _with_connections(function, *args, **kwargs))

    async def _write(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what `db` does for batches that write, one after the other and always in the same thread.

        SQLite would let a second one wait in naps, PostgreSQL gains little from two. And SQLite's connections each
        have pages of their own in memory, which are worth nothing once another connection has written.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._writer, lambda: _with_connections(function, *args, **kwargs))

    async def change(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what `db` does for a transaction of one connection that writes: with the batches, where one may write at a time."""
        run = self.db if sql.many_writers() else self._write
        return await run(function, *args, **kwargs)

    async def admit(self, user: Any, offer: UploadOffer) -> Admission | None:
        """Return what `admission.ask` does, in a thread that never writes. Raises `Refused`."""
        return await self.policy.ask(user.pk, offer.transfer, lambda: admission.ask(user, offer))

    async def admit_small(self, user: Any, offer: UploadOffer) -> Admission:
        """Return what `admission.ask_small` does; offers to the same addresses that come together are asked for once."""
        return await self.policy.ask(user.pk, offer.to, lambda: admission.ask_small(user, offer))

    async def see_through(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`. Cancelling the caller, whose connection is gone, leaves it running; `stop` waits for it."""
        task = asyncio.ensure_future(work)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return await asyncio.shield(task)

    async def _take_small(self, batch: Sequence[SmallOffer]) -> list[FinishedUpload | None]:
        taken = await self._write(small.take, batch)
        self.teller.tell(taken.arrivals)
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

    async def workers_alive(self) -> frozenset[str]:
        """Return the ids of live workers, at most 2 s old; nobody where Redis does not answer."""
        if time.monotonic() - self._workers_at >= WORKERS_SECONDS:
            try:
                self._workers = await registry.aalive_workers()
            except BufferUnavailable as error:
                logger.warning("%s", error)
                self._workers = frozenset()
            self._workers_at = time.monotonic() if self._workers else -WORKERS_SECONDS
            if not self._workers:
                self._complain()
        return self._workers

    def _count_workers(self) -> int:
        """Return how many workers lived when last asked."""
        return len(self._workers)

    def _complain(self) -> None:
        """Say in the log, once a minute at most, that there is no worker."""
        now = time.monotonic()
        if now - self._complained_at >= COMPLAIN_SECONDS:
            self._complained_at = now
            queue = dispatch.queue_of(dispatch.STORE)
            logger.warning("no live worker takes the tasks of the queue %r: start manage.py delivery_worker", queue)

    def forget_workers(self) -> None:
        """Look again for live workers at the next question: one came or went."""
        self._workers_at = -WORKERS_SECONDS

    def staged(self, payload: UUID, worker: str) -> None:
        """Tell the recipients of a payload which worker has just staged a range of it, where that one drains."""
        if self.draining_workers.since(worker) is not None:
            for session in self.lookout.sessions():
                session.staged(payload, worker)

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
        held = [(session, session.login) for session in self.sessions if session.login is not None]
        if held:
            valid = await self.db(auth.still_valid, [one for _, one in held])
            for (session, one), holds in zip(held, valid, strict=True):
                if not holds:
                    await self._revoke(session, one)

    async def _revoke(self, session: Leaver, ended: Login) -> None:
        try:
            session.revoke(await self.db(auth.end_of, ended))
        except Exception:  # whatever it is: the others are to be closed all the same
            logger.exception("a connection whose login does not hold is not closed")

    async def check_groups(self) -> None:
        """End every delivery through a group that its user has left."""
        checks = (session.check_groups() for session in self.lookout.sessions() if session.outflows)
        for outcome in await asyncio.gather(*checks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

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


def _with_connections(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function and keep its thread's connections for the next, unless one broke."""
    for connection in connections.all(initialized_only=True):
        # As at a request's start: with CONN_HEALTH_CHECKS, one that broke while nobody used it is replaced unnoticed.
        connection.health_check_done = False  # type: ignore[attr-defined] # which the stubs leave out
    try:
        return function(*args, **kwargs)
    finally:
        for connection in connections.all(initialized_only=True):
            if connection.connection is not None and (connection.errors_occurred or not connection.get_autocommit()):
                connection.close()


_processes: dict[asyncio.AbstractEventLoop, Process] = {}


def current() -> Process:
    """Return the running event loop's process object, made at the first call."""
    loop = asyncio.get_running_loop()
    if loop not in _processes:
        _processes[loop] = Process()
        _processes[loop].start()
    return _processes[loop]


def existing() -> Process | None:
    """Return the running event loop's process object, None where no connection ever came."""
    return _processes.get(asyncio.get_running_loop())
