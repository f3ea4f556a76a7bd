"""One connection: passes input to the core, acts on its events, and sends its output; hello, heartbeats, going away.

Owns every task that serves the connection; `end` cancels and awaits them all. Runs on its connection's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar
from uuid import UUID

from delivery import auth, conf, notify, policy
from delivery.auth import Login, Refusal, Request
from delivery.errors import BufferUnavailable, ProtocolViolation, TransferAborted
from delivery.policy import Quota
from delivery.protocol import events, messages
from delivery.protocol.codes import CLOSE_CODES, GOING_AWAY_CODES
from delivery.protocol.connection import Connection, Limits, Side
from delivery.server import membership, message_limits, web_process
from delivery.server.backpressure import Backpressure
from delivery.server.download_offers import ServerDownloads
from delivery.server.ports import ConnectionClosed, ConnectionPart, ConnectionPort, Socket
from delivery.server.upload_offers import ServerUploads
from delivery.server.writer import Writer
from delivery.transfers.deliveries import Waiting
from delivery.transfers.holders import Holder

logger = logging.getLogger(__name__)

T = TypeVar("T")

CONFIRM_SECONDS = 1.0
DETACH_SECONDS = 5.0
CANCEL_AGAIN_SECONDS = 0.2
MOST_GROUPS = 256  # of one hello: each is a question to the policy
FLUSH_SECONDS = 0.5  # that a planned close waits for what is on its way
MOVED_SECONDS = 5.0  # for so long a worker that moved a transfer is the one that serves it
LOOK_SECONDS = 0.02
# Of the timer. An idle connection is looked at twice a heartbeat.
BUSY_SECONDS = 1.0  # while transfers live
SHORTEST_SECONDS = 0.05
CLOSE_SECONDS = 2.0  # for a peer to read the close


class ServerConnection:
    """The server's end. Its consumer calls `start`, `take_text` and `take`, the control events, and at last `end`."""

    def __init__(self, socket: Socket, found: Login | Refusal) -> None:
        options = conf.current()
        self.process = web_process.current()
        self.login = found if isinstance(found, Login) else None  # None until a hello brings a token
        self.quota = Quota()  # the policy's, from hello on
        self.client = ""
        self.core = Connection(
            Side.SERVER,
            Limits(
                max_message=options.max_message,
                chunk_size=options.chunk_size,
                early_data=min(options.inline_limit, options.chunk_size),
            ),
            now=time.monotonic(),
            heartbeat=options.heartbeat,
        )
        self.uploads = ServerUploads(self, self.process)
        self.downloads = ServerDownloads(self, self.process)
        self.close_code: int | None = None
        self.over = False  # the socket is gone
        self._socket = socket
        self._options = options
        self._confirmed_at = time.monotonic()
        self._welcomed_at: float | None = None
        self._holder: Holder | None = None
        self._leaving = False  # flushing before a planned close: nothing more is taken in
        self._counted = False  # among the user's connections
        self._writer = Writer(socket, self.core, self.downloads)
        self._backpressure = Backpressure(self, self.process, self.uploads)
        self.db = self._backpressure.db
        self.change = self._backpressure.change
        self._timer = ConnectionTimer(self, socket, self.uploads, self.downloads)
        self._tasks: set[asyncio.Task[None]] = set()

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.process.sockets.add(self)
        self.spawn(self._writer.run(), "writer")
        self._timer.start()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a task that this connection owns. What escapes it closes the connection with 1011."""
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
            return  # the consumer hears of it by itself, and ends the connection
        except Exception:
            logger.exception("connection of %s fails", self.client)
            self.close(1011, "internal error")

    async def end(self, code: int | None) -> None:
        """Let go of everything: the socket is gone. `code`: the close code that came, None where none did."""
        self.over = True
        self.close_code = self.close_code or code
        self._timer.stop()
        try:
            await self._cancel_all()
            await self._detach_all()
        finally:
            self.process.sockets.discard(self)
            self.process.presence.leave(self)
            if self._counted:
                self.process.counts.leave(self.user.pk)

    async def _cancel_all(self) -> None:
        """End every task. A library may lose a cancellation in a timeout of its own: it is asked again."""
        deadline = time.monotonic() + DETACH_SECONDS
        while self._tasks and time.monotonic() < deadline:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=CANCEL_AGAIN_SECONDS)
            await asyncio.sleep(0)  # each takes itself from the set

    async def _detach_all(self) -> None:
        """Let go of all transfers at once, each by itself: nobody waits for another, or for its failure.

        Returns after 5 s at the latest; what takes longer goes on without the connection.
        """
        works = [*self.uploads.detach_all(), *self.downloads.detach_all()]
        if not works:
            return
        detaching = [self.process.see_through(self._detached(work)) for work in works]
        _, late = await asyncio.wait(detaching, timeout=DETACH_SECONDS)
        if late:
            logger.warning("connection of %s: detaching takes longer than %s s", self.client, DETACH_SECONDS)

    async def _detached(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:  # whatever it is, it is this transfer's
            logger.exception("connection of %s: a transfer is not detached", self.client)

    @property
    def user(self) -> Any:
        """The user at the other end, once there is one."""
        if self.login is None:
            raise RuntimeError("nobody is logged in before hello")
        return self.login.user

    def require_holder(self) -> Holder:
        if self._holder is None:
            raise RuntimeError("no transfer can be held before hello")
        return self._holder

    @property
    def busy(self) -> int:
        """How many tasks serve this connection."""
        return len(self._tasks)

    def wake(self) -> None:
        """There may be something to write."""
        self._writer.wake()

    def transfers_live(self) -> None:
        """Look often from now on: a transfer has begun."""
        self._timer.transfers_live()

    def reset_timer(self) -> None:
        """What time alone asks for may be due sooner."""
        self._timer.start()

    # -- hello -------------------------------------------------------------------------------------------------------

    async def _greet(self, hello: messages.Hello) -> None:
        """Answer a hello with a welcome, or close the connection (PROTOCOL section 1)."""
        if self.login is None:
            found = await self._login_of(hello.token)
            if isinstance(found, Refusal):
                return self.close(4401, found.value)
            self.login = found
        self.quota = await self.process.questions.quota_of(self.user)
        if self._count() > self.quota.connections:
            return self.refuse(ProtocolViolation(CLOSE_CODES[4429].reason, 4429))
        try:
            order = await self.process.questions.order()
        except BufferUnavailable:
            return self._go_away("overloaded", self._options.retry_max)
        self.client = hello.client
        self._holder = Holder(self.user.pk, hello.client, secrets.token_hex(8), order, self._socket.channel_name)
        wanted = hello.groups[:MOST_GROUPS]
        groups = await membership.join_groups(self.process, self.user, wanted) if wanted else []
        self._welcome(self._holder, groups)
        if hello.receive:
            await self._receive(groups)
        return None

    async def _login_of(self, token: str | None) -> Login | Refusal:
        if token is None:
            return Refusal.MISSING
        return await self.process.questions.login_of(Request.with_token(token))

    def _count(self) -> int:
        """Count this connection among its user's; return how many those are now."""
        self._counted = True
        return self.process.counts.enter(self.user.pk)

    def _welcome(self, holder: Holder, groups: list[str]) -> None:
        options = conf.current()
        self._welcomed_at = time.monotonic()
        self._socket.limit_messages(options.max_message + message_limits.SLACK_BYTES)
        self.core.welcome(
            messages.Welcome(
                session=holder.session,
                user=policy.address_of(self.user),
                groups=tuple(groups),
                max_message=options.max_message,
                chunk_size=options.chunk_size,
                window=options.window,
                early_data=self.core.limits.early_data,
                heartbeat=options.heartbeat,
                retry={"initial": options.retry_initial, "max": options.retry_max},
            )
        )
        self.wake()

    async def _receive(self, groups: list[str]) -> None:
        """Offer what waits, and what arrives from now on."""
        addresses = [policy.address_of(self.user), *(policy.GROUP + name for name in groups)]
        for address in addresses:
            await self._socket.join(notify.group_of(address))
        self.process.presence.join(self, addresses)
        self.spawn(self.downloads.run(), "offering")
        self.downloads.look()

    async def confirm(self) -> None:
        """Look, at most once a second, whether the login still holds.

        Raises `TransferAborted` where it does not; the connection is then closed with 4401 and acks nothing more.
        """
        now = time.monotonic()
        if self.login is None or now - self._confirmed_at < CONFIRM_SECONDS:
            return
        holds = await self.process.questions.holds(self.login)  # many connections ask in one query
        self._confirmed_at = now
        if not holds:
            self.revoke(await self.process.db(auth.end_of, self.login))
            raise TransferAborted("forbidden", final=False)

    # -- what comes --------------------------------------------------------------------------------------------------

    def take_text(self, text: str) -> bool:
        """Take a text message; return False where `pace` is to be awaited before the next. Raises nothing."""
        return self._take(self.core.receive_text, text)

    def take(self, data: bytes) -> bool:
        """Take a binary message, as `take_text` does."""
        return self._take(self.core.receive_bytes, data)

    def _take(self, receive: Callable[[T, float], list[events.Event]], message: T) -> bool:
        if self.deaf:
            return True
        try:
            self.act(receive(message, time.monotonic()))
        except ProtocolViolation as violation:
            self.refuse(violation)
        except Exception:  # whoever calls knows nothing of connections
            logger.exception("connection of %s fails", self.client)
            self.close(1011, "internal error")
        if self.closing or self.core.has_to_send():
            self.wake()
        return not self._backpressure.due()

    async def pace(self) -> None:
        """Return once more may be read."""
        await self._backpressure.wait()

    @property
    def deaf(self) -> bool:
        """Whether what comes is discarded: we are going away, and the peer may not know yet."""
        return self._leaving or self.closing

    def act(self, happened: Sequence[events.Event]) -> None:
        """Do what the core's events ask for."""
        for event in happened:
            self._act_on(event)

    def _act_on(self, event: events.Event) -> None:
        match event:
            case events.ChunkKept():
                self.uploads.keep(event.receiver, event.chunk)
            case events.Acked():
                self.downloads.acked(event)
            case events.Finished():
                self.uploads.finished(event.receiver)
            case events.Offered():
                self.spawn(self.uploads.answer(event.receiver), "offer")
            case events.Accepted():
                self.downloads.accepted(event.sender)
            case events.Completed():
                self.downloads.done(event.sender)
            case events.Rejected():
                self.spawn(self.downloads.rejected(event.sender, event.message.code), "reject")
            case events.SenderAborted():
                self.spawn(self.downloads.aborted(event.sender, event.message), "abort")
            case events.ReceiverAborted():
                self.uploads.aborted(event.receiver, event.message)
            case events.Greeted():
                self.spawn(self._greet(event.hello), "hello")
            case _:
                return

    # -- control events ----------------------------------------------------------------------------------------------

    def taken_over(self, transfer: UUID, lease: int) -> None:
        """A newer connection holds a transfer, an upload under `lease`."""
        self.uploads.taken_over(transfer, lease)
        if lease == 0:
            self.downloads.taken_over(transfer)

    def ended(self, transfer: UUID, code: str) -> None:
        """A transfer was ended elsewhere: cancelled in the admin, expired by the sweep."""
        self.uploads.ended(transfer, code)
        self.downloads.ended(transfer, code)

    def worker_draining(self, worker: str) -> None:
        """A worker shuts down: go away if it is the one that moves our transfers."""
        self.process.workers.note_draining(worker)
        since = time.monotonic() - MOVED_SECONDS
        if self.uploads.moved_since(worker, since) or self.downloads.moved_since(worker, since):
            self.spawn(self.leave("worker_draining"), "leaving")

    def worker_ready(self, worker: str) -> None:
        """A worker has come: what waited for one may go on."""
        self.process.workers.note_ready(worker)
        self.spawn(self.uploads.release_held(), "release")

    def moved_by(self, worker: str) -> None:
        """A worker has reported on a transfer of ours: go away if it drains, and did not when we were welcomed.

        It may not have reported on any before. Whoever comes back meanwhile is not sent away again.
        """
        since = self.process.workers.draining_since(worker)
        if since is not None and not self.deaf and self._welcomed_at is not None and self._welcomed_at < since:
            self.spawn(self.leave("worker_draining"), "leaving")

    def staged(self, payload: UUID, worker: str) -> None:
        """A worker has staged a range of a payload."""
        if self.downloads.staged(payload):
            self.moved_by(worker)

    def arrived(self, address: str, waiting: Waiting | None) -> None:
        """A payload has arrived for an address that this connection has joined; `waiting`: all of it, if it is small."""
        self.downloads.arrived(address, waiting)

    @property
    def receiving(self) -> bool:
        """Whether a delivery is on its way."""
        return bool(self.downloads)

    async def check_groups(self) -> None:
        """End what came through a group that the user has left."""
        await self.downloads.check_groups()

    # -- closing -----------------------------------------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        return self._writer.closing is not None

    def close(self, code: int, reason: str) -> None:
        """Send what is in the outbox, then close."""
        if self._writer.close(code, reason):
            self.close_code = code
            self._timer.close()

    def _go_away(self, reason: str, retry_after: float, text: str | None = None) -> None:
        """Say `going_away` for `reason` (PROTOCOL section 6), then close with its code. `text`: the close's, if not the usual."""
        if not self.closing:
            code = GOING_AWAY_CODES[reason]
            self.core.leave(reason, retry_after)
            self.close(code, text or CLOSE_CODES[code].reason)

    def refuse(self, violation: ProtocolViolation) -> None:
        """Close because the peer broke the protocol."""
        if violation.code == GOING_AWAY_CODES["rate"]:
            self._go_away("rate", self._options.retry_max, violation.reason)
        else:
            self.close(violation.code, violation.reason)

    def revoke(self, reason: str) -> None:
        """The login no longer holds: close, and say nothing more, no ack either."""
        self._leaving = True
        self._writer.mute()
        self.close(4401, reason)

    async def leave(self, reason: str) -> None:
        """Take nothing more in, store and ack what is on its way, say `going_away`, close. Returns once that is queued.

        `reason`: of PROTOCOL section 6. Flushing takes at most 0.5 s; what is not stored by then is sent again.
        """
        if self.deaf:
            return
        self._leaving = True
        self.uploads.hurry()
        deadline = time.monotonic() + FLUSH_SECONDS
        while time.monotonic() < deadline and not self.uploads.settled:
            await asyncio.sleep(LOOK_SECONDS)
        self.core.queue_acks(time.monotonic())
        # Spread, so that all the clients do not come back in the same moment.
        self._go_away(reason, round(random.uniform(0.0, conf.current().drain_spread), 3))


class ConnectionTimer(ConnectionPart):
    """What time alone asks for: pings, silence, stalled deliveries, a close that nobody reads. Belongs to one event loop.

    A timer and no task: a thousand idle connections cost a thousand entries in the loop's heap.
    """

    def __init__(
        self, connection: ConnectionPort, socket: Socket, uploads: ServerUploads, downloads: ServerDownloads
    ) -> None:
        super().__init__(connection)
        self._socket = socket
        self._uploads = uploads
        self._downloads = downloads
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._closing = False

    def start(self) -> None:
        """Look when it is due next; call it again where that may have become sooner."""
        if self._closing:
            return
        self.stop()
        core = self._connection.core
        longest = core.heartbeat / 2
        if self._uploads or self._downloads:
            longest = min(longest, BUSY_SECONDS)
        due = core.wake_at() - time.monotonic()
        self._handle = self._loop.call_later(max(SHORTEST_SECONDS, min(longest, due)), self._look)

    def transfers_live(self) -> None:
        """Look often from now on: a transfer has begun."""
        if self._handle is None or self._handle.when() > self._loop.time() + BUSY_SECONDS:
            self.start()

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()

    def close(self) -> None:
        """Give the peer 2 s to read what waits to be sent, the close among it; then give the connection up."""
        if not self._closing:
            self._closing = True
            self.stop()
            self._handle = self._loop.call_later(CLOSE_SECONDS, self._socket.abandon)

    def _look(self) -> None:
        connection = self._connection
        try:
            self._look_once(time.monotonic())
            if self._uploads.holds_any():
                connection.spawn(self._uploads.release_held(), "release")
        except Exception:
            logger.exception("connection of %s fails", connection.client)
            connection.close(1011, "internal error")
        connection.wake()
        self.start()

    def _look_once(self, now: float) -> None:
        connection = self._connection
        connection.core.heard(self._socket.incomplete_at())
        for event in connection.core.tick(now):
            if isinstance(event, events.HelloMissing):
                connection.close(4408, "no hello in time")
            elif isinstance(event, events.PeerSilent):
                connection.close(1011, "no answer")
        self._downloads.drop_stalled(now)
