"""One connection: feeds the core what comes, acts on its events, writes what it wants sent.

Owns every task that serves the connection; `end` cancels and awaits them all. Runs on its connection's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from uuid import UUID
from weakref import WeakValueDictionary

from delivery import auth, conf, policy
from delivery.auth import Login, Refusal
from delivery.errors import ProtocolViolation, TransferAborted
from delivery.policy import Quota
from delivery.protocol import events, messages
from delivery.protocol.connection import Connection, Limits, Side
from delivery.protocol.frames import Chunk
from delivery.protocol.receiver import Receiver, Terms
from delivery.server import download_offers, greeting, leaving, membership, upload_offers, web_process
from delivery.server.backpressure import Pacing
from delivery.server.download import Outflow
from delivery.server.inline_upload import InlineIntake
from delivery.server.offering import Offering
from delivery.server.timer import Timer
from delivery.server.upload import Intake
from delivery.server.writer import ConnectionClosed, Socket, Writer
from delivery.transfers.deliveries import Waiting
from delivery.transfers.holders import Holder

logger = logging.getLogger(__name__)

T = TypeVar("T")

CONFIRM_SECONDS = 1.0
DETACH_SECONDS = 5.0
CANCEL_AGAIN_SECONDS = 0.2


class Session:
    """One connection. Its consumer calls `start`, `text`, `data`, the control events, and at last `end`."""

    def __init__(self, socket: Socket, found: Login | Refusal) -> None:
        options = conf.current()
        self.process = web_process.current()
        self.login = found if isinstance(found, Login) else None  # None until a hello brings a token
        self.confirmed_at = time.monotonic()
        self.welcomed_at: float | None = None
        self.quota = Quota()  # the policy's, from hello on
        self.client = ""
        self.holder: Holder | None = None
        self.intakes: dict[int, Intake | InlineIntake] = {}
        self.outflows: dict[int, Outflow] = {}
        self.early: dict[int, Chunk] = {}  # chunks that came before the answer to their offer
        self.expecting: dict[int, asyncio.Event] = {}  # the `finish` of early data, by handle
        self.answering: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()  # by transfer
        self.connection = Connection(
            Side.SERVER,
            Limits(
                max_message=options.max_message,
                chunk_size=options.chunk_size,
                early_data=min(options.inline_limit, options.chunk_size),
            ),
            now=time.monotonic(),
            heartbeat=options.heartbeat,
        )
        self.offering = Offering(self, chunk_size=options.chunk_size, most_live=options.max_live_transfers)
        self.close_code: int | None = None
        self.over = False  # the socket is gone
        self.leaving = False  # flushing before a planned close: nothing more is taken in
        self._writer = Writer(socket, self.connection, self.outflows)
        self.socket = socket
        self._options = options
        self._counted = False  # among the user's connections
        self._pacing = Pacing(self)
        self.db = self._pacing.db
        self.change = self._pacing.change
        self.timer = Timer(self)
        self._tasks: set[asyncio.Task[None]] = set()

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.process.sessions.add(self)
        self.spawn(self._writer.run(), "writer")
        self.timer.start()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a task that this session owns. What escapes it closes the connection with 1011."""
        task = asyncio.create_task(self._guard(work), name=f"delivery {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # never begun, where it was cancelled before its first step
        return task

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except ProtocolViolation as violation:
            self.refuse(violation)
        except ConnectionClosed:
            return  # the consumer hears of it by itself, and ends the session
        except Exception:
            logger.exception("connection of %s fails", self.client)
            self.close(1011, "internal error")

    async def end(self, code: int | None) -> None:
        """Let go of everything: the socket is gone. `code`: the close code that came, None where none did."""
        self.over = True
        self.close_code = self.close_code or code
        self.timer.stop()
        try:
            await self._cancel_all()
            await self._detach_all()
        finally:
            self.process.sessions.discard(self)
            self.process.lookout.leave(self)
            if self._counted:
                self.process.connections.leave(self.user.pk)

    async def _cancel_all(self) -> None:
        """End every task. A library may lose a cancellation in a timeout of its own: it is asked again."""
        deadline = time.monotonic() + DETACH_SECONDS
        while self._tasks and time.monotonic() < deadline:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=CANCEL_AGAIN_SECONDS)
            await asyncio.sleep(0)  # each takes itself from the set

    def count(self) -> int:
        """Count this connection among its user's; return how many those are now."""
        self._counted = True
        return self.process.connections.enter(self.user.pk)

    async def _detach_all(self) -> None:
        """Let go of all transfers at once, each by itself: nobody waits for another, or for its failure.

        Returns after 5 s at the latest; what takes longer goes on without the session.
        """
        works = [upload_offers.detach(self, intake) for intake in list(self.intakes.values())]
        works += [download_offers.detach(self, outflow) for outflow in list(self.outflows.values())]
        if not works:
            return
        detaching = [asyncio.ensure_future(self.process.see_through(self._detached(work))) for work in works]
        _, late = await asyncio.wait(detaching, timeout=DETACH_SECONDS)
        if late:
            logger.warning("connection of %s: detaching takes longer than %s s", self.client, DETACH_SECONDS)

    async def _detached(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:  # whatever it is, it is this transfer's
            logger.exception("connection of %s: a transfer is not detached", self.client)

    def close(self, code: int, reason: str, *, going_away: messages.GoingAway | None = None) -> None:
        """Send what is in the outbox, then close. Says `going_away` first where given."""
        if self._writer.close(code, reason, going_away=going_away):
            self.close_code = code
            self.timer.close()

    def refuse(self, violation: ProtocolViolation) -> None:
        """Close because the peer broke the protocol."""
        going_away = None
        if violation.code == 4429:
            going_away = messages.GoingAway(reason="rate", retry_after=self._options.retry_max)
        self.close(violation.code, violation.reason, going_away=going_away)

    @property
    def user(self) -> Any:
        """The user at the other end, once there is one."""
        if self.login is None:
            raise RuntimeError("nobody is logged in before hello")
        return self.login.user

    async def confirm(self) -> None:
        """Look, at most once a second, whether the login still holds.

        Raises `TransferAborted` where it does not; the connection is then closed with 4401 and acks nothing more.
        """
        now = time.monotonic()
        if self.login is None or now - self.confirmed_at < CONFIRM_SECONDS:
            return
        holds = await self.process.questions.holds(self.login)  # many connections ask in one query
        self.confirmed_at = now
        if not holds:
            self.revoke(await self.process.db(auth.end_of, self.login))
            raise TransferAborted("forbidden", final=False)

    def revoke(self, reason: str) -> None:
        """The login no longer holds: close, and say nothing more, no ack either."""
        self.leaving = True
        self._writer.mute()
        self.close(4401, reason)

    async def leave(self, reason: str) -> None:
        """Go away: `reason` of PROTOCOL section 6."""
        await leaving.leave(self, reason)

    def wake(self) -> None:
        """There may be something to write."""
        self._writer.wake()

    @property
    def closing(self) -> bool:
        return self._writer.closing is not None

    # -- what comes --------------------------------------------------------------------------------------------------

    def take_text(self, text: str) -> bool:
        """Take a text message; return False where `pace` is to be awaited before the next. Raises nothing."""
        return self._take(self.connection.receive_text, text)

    def take(self, data: bytes) -> bool:
        """Take a binary message, as `take_text` does."""
        return self._take(self.connection.receive_bytes, data)

    def _take(self, receive: Callable[[T, float], list[events.Event]], message: T) -> bool:
        if self.deaf:
            return True
        try:
            self.act(receive(message, time.monotonic()))
        except ProtocolViolation as violation:
            self.refuse(violation)
        except Exception:  # whoever calls knows nothing of sessions
            logger.exception("connection of %s fails", self.client)
            self.close(1011, "internal error")
        if self.closing or self.connection.has_to_send():
            self.wake()
        return not self._pacing.due()

    async def pace(self) -> None:
        """Return once more may be read."""
        await self._pacing.wait()

    @property
    def deaf(self) -> bool:
        """Whether what comes is discarded: we are going away, and the peer may not know yet."""
        return self.leaving or self.closing

    @property
    def busy(self) -> int:
        """How many tasks serve this connection."""
        return len(self._tasks)

    def act(self, happened: list[events.Event]) -> None:
        """Do what the core's events ask for."""
        for event in happened:
            self._act_on(event)

    def _act_on(self, event: events.Event) -> None:
        match event:
            case events.ChunkKept():
                upload_offers.keep(self, event.receiver, event.chunk)
            case events.Acked():
                download_offers.acked(self, event)
            case events.Finished():
                self._wake_intake(event.receiver)
            case events.Offered():
                self.spawn(upload_offers.answer(self, event.receiver), "offer")
            case events.Accepted():
                download_offers.accepted(self, event.sender)
            case events.Completed():
                download_offers.done(self, event.sender)
            case events.Rejected():
                self.spawn(download_offers.rejected(self, event.sender, event.message.code), "reject")
            case events.SenderAborted():
                self.spawn(download_offers.aborted(self, event.sender, event.message), "abort")
            case events.ReceiverAborted():
                self._wake_expecting(event.receiver)
                self.spawn(upload_offers.aborted(self, event.receiver, event.message), "abort")
            case events.Greeted():
                self.spawn(greeting.greet(self, event.hello), "hello")
            case _:
                return

    def _wake_intake(self, receiver: Receiver) -> None:
        if (intake := self.intakes.get(receiver.handle)) is not None:
            intake.wake()
        self._wake_expecting(receiver)

    def _wake_expecting(self, receiver: Receiver) -> None:
        if (expected := self.expecting.get(receiver.handle)) is not None:
            expected.set()

    def require_holder(self) -> Holder:
        if self.holder is None:
            raise RuntimeError("no transfer can be held before hello")
        return self.holder

    # -- control events ----------------------------------------------------------------------------------------------

    def taken_over(self, transfer: UUID, lease: int) -> None:
        """A newer connection holds a transfer, an upload under `lease`."""
        for intake in list(self.intakes.values()):
            if intake.opened.transfer == transfer and intake.lease < lease:
                upload_offers.drop(self, intake, "taken_over", final=False)
        for outflow in list(self.outflows.values()):
            if outflow.waiting.transfer == transfer and lease == 0:
                download_offers.drop(self, outflow, "taken_over", final=False)

    def ended(self, transfer: UUID, code: str) -> None:
        """A transfer was ended elsewhere: cancelled in the admin, expired by the sweep."""
        for intake in list(self.intakes.values()):
            if intake.opened.transfer == transfer:
                upload_offers.drop(self, intake, code, final=True)
        for outflow in list(self.outflows.values()):
            if outflow.waiting.transfer == transfer:
                download_offers.drop(self, outflow, code, final=True)

    def worker_draining(self, worker: str) -> None:
        """A worker shuts down: go away if it is the one that moves our transfers."""
        self.process.forget_workers()
        self.process.draining_workers.add(worker)
        if leaving.served_by(self, worker):
            self.spawn(self.leave("worker_draining"), "leaving")

    def worker_ready(self, worker: str) -> None:
        """A worker has come: what waited for one may go on."""
        self.process.forget_workers()
        self.process.draining_workers.discard(worker)
        self.spawn(upload_offers.release_held(self), "release")

    def moved_by(self, worker: str) -> None:
        """A worker has reported on a transfer of ours: go away if it drains, and did not when we were welcomed.

        It may not have reported on any before. Whoever comes back meanwhile is not sent away again.
        """
        since = self.process.draining_workers.since(worker)
        if since is not None and not self.deaf and self.welcomed_at is not None and self.welcomed_at < since:
            self.spawn(self.leave("worker_draining"), "leaving")

    def staged(self, payload: UUID, worker: str) -> None:
        """A worker has staged a range of a payload."""
        if any(outflow.granted and outflow.waiting.payload == payload for outflow in self.outflows.values()):
            self.moved_by(worker)

    def arrived(self, address: str, waiting: Waiting | None) -> None:
        """A payload has arrived for an address that this connection has joined; `waiting`: all of it, if it is small."""
        if waiting is not None:
            self.offering.push(waiting)
        else:
            self.spawn(self._look_for(address), "arrival")

    async def check_groups(self) -> None:
        """End what came through a group that the user has left."""
        await membership.check(self)

    async def _look_for(self, address: str) -> None:
        if address.startswith(policy.GROUP):
            await membership.catch_up(self, address)
        self.offering.look()

    def terms(self) -> Terms:
        options = self._options
        return Terms(window=options.window, segment_size=options.segment_size, max_size=options.max_payload)
