"""One connection: feeds the core what comes, acts on its events, writes what it wants sent.

Owns every task that serves the connection; `end` cancels and awaits them all. Runs on its connection's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Coroutine
from typing import Any, Protocol
from uuid import UUID

from delivery import conf, notify, policy
from delivery.buffer import clients
from delivery.errors import BufferUnavailable, ProtocolViolation, Refused, StorageUnavailable, TransferAborted
from delivery.protocol import events, messages
from delivery.protocol.connection import Connection, Limits, Side
from delivery.protocol.frames import Chunk
from delivery.protocol.receiver import Receiver, Terms
from delivery.protocol.sender import Sender
from delivery.serving import login, process, uploading
from delivery.serving.inline import InlineIntake
from delivery.serving.intake import Intake
from delivery.serving.login import Refusal
from delivery.serving.offering import Offering
from delivery.serving.outflow import Outflow
from delivery.transfers import deliveries, ending, uploads
from delivery.transfers.holders import Holder

logger = logging.getLogger(__name__)

UNFLUSHED_BYTES = 4 * 1024 * 1024  # of one connection, in this process's memory alone
UNFLUSHED_SECONDS = 15.0
TICK_SECONDS = 1.0
CLOSE_SECONDS = 2.0
DETACH_SECONDS = 5.0


class ConnectionClosed(Exception):
    """The socket takes nothing more: its peer is gone."""


class Socket(Protocol):
    """What a session needs of its consumer. Sending raises `ConnectionClosed` once the peer is gone."""

    channel_name: str

    async def send_text(self, text: str) -> None: ...

    async def send_bytes(self, data: bytes) -> None: ...

    async def close(self, code: int, reason: str) -> None: ...

    async def join(self, group: str) -> None: ...

    def abandon(self) -> None: ...


class Session:
    """One connection. Its consumer calls `start`, `text`, `data`, the control events, and at last `end`."""

    def __init__(self, socket: Socket, user: Any | Refusal) -> None:
        options = conf.current()
        self.process = process.current()
        self.user: Any = user
        self.client = ""
        self.holder: Holder | None = None
        self.intakes: dict[int, Intake | InlineIntake] = {}
        self.outflows: dict[int, Outflow] = {}
        self.early: dict[int, Chunk] = {}  # chunks that came before the answer to their offer
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
        self._socket = socket
        self._options = options
        self._woken = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: tuple[int, str] | None = None

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.process.sessions.add(self)
        self.spawn(self._write(), "writer")
        self.spawn(self._tick(), "ticker")

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a task that this session owns. What escapes it closes the connection with 1011."""
        task = asyncio.create_task(self._guard(work), name=f"delivery {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
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
        self.process.sessions.discard(self)
        self.close_code = self.close_code or code
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(DETACH_SECONDS):
                await self._detach_all()
        except TimeoutError:
            logger.warning("connection of %s: detaching took longer than %s s", self.client, DETACH_SECONDS)

    async def _detach_all(self) -> None:
        for intake in self.intakes.values():
            await self.detach_intake(intake)
        for outflow in self.outflows.values():
            await self._detach_outflow(outflow)

    async def detach_intake(self, intake: Intake | InlineIntake) -> None:
        """Store what was taken in, and note that nobody holds the upload."""
        await intake.detach()
        session = self.require_holder().session
        await self.process.db(uploads.detach, intake.opened.transfer, session, close_code=self.close_code)

    async def _detach_outflow(self, outflow: Outflow) -> None:
        if outflow.granted:
            self.note_position(outflow)
            await self.process.write_positions()
            transfer, channel = outflow.waiting.transfer, self._socket.channel_name
            await self.process.db(deliveries.detach, transfer, self.client, channel, close_code=self.close_code)

    def close(self, code: int, reason: str, *, going_away: messages.GoingAway | None = None) -> None:
        """Send what is in the outbox, then close. Says `going_away` first where given."""
        if self._closing is None:
            if going_away is not None:
                self.connection.outbox.append(going_away)
                self.connection.going_away = True
            self._closing = (code, reason)
            self.close_code = code
            self.wake()

    def refuse(self, violation: ProtocolViolation) -> None:
        """Close because the peer broke the protocol."""
        going_away = None
        if violation.code == 4429:
            going_away = messages.GoingAway(reason="rate", retry_after=self._options.retry_max)
        self.close(violation.code, violation.reason, going_away=going_away)

    def wake(self) -> None:
        """There may be something to write."""
        self._woken.set()

    @property
    def closing(self) -> bool:
        return self._closing is not None

    # -- what comes --------------------------------------------------------------------------------------------------

    async def text(self, text: str) -> None:
        """Take a text message."""
        if self._closing is None:
            try:
                self.act(self.connection.receive_text(text, time.monotonic()))
            except ProtocolViolation as violation:
                self.refuse(violation)
            self.wake()

    async def data(self, data: bytes) -> None:
        """Take a binary message. Waits where too much of this connection is in memory alone: TCP slows the peer down."""
        if self._closing is not None:
            return
        try:
            self.act(self.connection.receive_bytes(data, time.monotonic()))
        except ProtocolViolation as violation:
            self.refuse(violation)
            self.wake()
            return
        if self._unflushed() >= UNFLUSHED_BYTES:
            await self._until_flushed()

    def _unflushed(self) -> int:
        return sum(intake.unflushed for intake in self.intakes.values())

    async def _until_flushed(self) -> None:
        # Never for long: pongs are not read meanwhile. Past it the intake itself gives up on the buffer.
        try:
            async with asyncio.timeout(UNFLUSHED_SECONDS):
                for intake in list(self.intakes.values()):
                    await intake.below(UNFLUSHED_BYTES // 2)
        except TimeoutError:
            logger.warning("connection of %s: the buffer is slow", self.client)

    def act(self, happened: list[events.Event]) -> None:
        """Do what the core's events ask for."""
        for event in happened:
            self._act_on(event)

    def _act_on(self, event: events.Event) -> None:
        match event:
            case events.ChunkKept():
                uploading.keep(self, event.receiver, event.chunk)
            case events.Acked():
                self._on_acked(event)
            case events.Finished():
                self._wake_intake(event.receiver)
            case events.Offered():
                self.spawn(uploading.answer(self, event.receiver), "offer")
            case events.Accepted():
                self.spawn(self._take(event.sender), "accept")
            case events.Completed():
                self.spawn(self._delivered(event.sender), "done")
            case events.Rejected():
                self.spawn(self._rejected(event.sender, event.message.code), "reject")
            case events.SenderAborted():
                self.spawn(self._sender_aborted(event.sender, event.message), "abort")
            case events.ReceiverAborted():
                self.spawn(self._receiver_aborted(event.receiver, event.message), "abort")
            case events.Greeted():
                self.spawn(self._greet(event.hello), "hello")
            case _:
                return

    def _wake_intake(self, receiver: Receiver) -> None:
        if (intake := self.intakes.get(receiver.handle)) is not None:
            intake.wake()

    # -- hello -------------------------------------------------------------------------------------------------------

    async def _greet(self, hello: messages.Hello) -> None:
        if isinstance(self.user, Refusal):
            self.user = await self.process.db(login.user_of_token, hello.token)
        if isinstance(self.user, Refusal):
            return self.close(4401, self.user.value)
        try:
            order = await clients.aclock()
        except BufferUnavailable:
            away = messages.GoingAway(reason="overloaded", retry_after=self._options.retry_max)
            return self.close(1013, "overloaded, try again later", going_away=away)
        self.client = hello.client
        self.holder = Holder(self.user.pk, hello.client, secrets.token_hex(8), order, self._socket.channel_name)
        groups = await self.process.db(deliveries.join, self.user, hello.groups) if hello.groups else []
        self._welcome(groups)
        if hello.receive:
            await self._receive(groups)

    def _welcome(self, groups: list[str]) -> None:
        options = self._options
        self.connection.welcome(
            messages.Welcome(
                session=self.require_holder().session,
                user=policy.address_of(self.user),
                groups=tuple(groups),
                max_message=options.max_message,
                chunk_size=options.chunk_size,
                window=options.window,
                early_data=self.connection.limits.early_data,
                heartbeat=options.heartbeat,
                retry={"initial": options.retry_initial, "max": options.retry_max},
            )
        )
        self.wake()

    async def _receive(self, groups: list[str]) -> None:
        """Offer what waits, and what arrives from now on."""
        await self._socket.join(notify.group_of(policy.address_of(self.user)))
        for name in groups:
            await self._socket.join(notify.group_of(policy.GROUP + name))
        self.spawn(self.offering.run(), "offering")
        self.offering.look()

    def require_holder(self) -> Holder:
        if self.holder is None:
            raise RuntimeError("no transfer can be held before hello")
        return self.holder

    # -- deliveries --------------------------------------------------------------------------------------------------

    def add_outflow(self, outflow: Outflow) -> None:
        self.outflows[outflow.sender.handle] = outflow
        self.spawn(self._flow(outflow), "delivery")
        self.wake()

    async def _flow(self, outflow: Outflow) -> None:
        try:
            await outflow.run()
        except TransferAborted as aborted:
            self.drop_outflow(outflow, aborted.code, final=aborted.code != "taken_over")
        except StorageUnavailable as error:
            logger.error("%s", error)
            self.drop_outflow(outflow, "storage_unavailable", final=False)

    def drop_outflow(self, outflow: Outflow, code: str, *, final: bool) -> None:
        """Tell the peer that a delivery ends here."""
        self.outflows.pop(outflow.sender.handle, None)
        if outflow.sender.live:
            self.connection.abort(outflow.sender, code, final=final)
        self.offering.set_aside(outflow.waiting.transfer)
        self.wake()

    async def _take(self, sender: Sender) -> None:
        outflow = self.outflows[sender.handle]
        try:
            displaced = await self.process.db(
                deliveries.take, outflow.waiting.transfer, self.require_holder(), sender.acked_bytes
            )
        except Refused as refused:
            final = refused.code != "taken_over"
            return self.drop_outflow(outflow, refused.code, final=final)
        if displaced:
            await notify.atell_channel(displaced, "taken_over", transfer=outflow.waiting.transfer.hex, lease=0)
        outflow.grant()
        self.offering.look()
        self.wake()

    def _on_acked(self, event: events.Acked) -> None:
        outflow = self.outflows.get(event.sender.handle)
        if outflow is not None:
            if event.progressed:
                self.note_position(outflow)
            outflow.wake()

    def note_position(self, outflow: Outflow) -> None:
        self.process.note_position(outflow.waiting.transfer, self.client, outflow.sender.acked_bytes)

    async def _delivered(self, sender: Sender) -> None:
        outflow = self.outflows.pop(sender.handle, None)
        if outflow is not None:
            await self.process.db(deliveries.finish, outflow.waiting.transfer, self.client)
            self.offering.look()

    async def _rejected(self, sender: Sender, code: str) -> None:
        outflow = self.outflows.pop(sender.handle, None)
        if outflow is not None:
            self.offering.set_aside(outflow.waiting.transfer)
            if code == "declined":
                await self.process.db(deliveries.decline, outflow.waiting.transfer, self.client)
            self.offering.look()

    async def _sender_aborted(self, sender: Sender, message: messages.Abort) -> None:
        outflow = self.outflows.pop(sender.handle, None)
        if outflow is not None:
            self.offering.set_aside(outflow.waiting.transfer)
            if message.final:
                await self.process.db(deliveries.decline, outflow.waiting.transfer, self.client)
            else:
                await self._detach_outflow(outflow)
            self.offering.look()

    async def _receiver_aborted(self, receiver: Receiver, message: messages.Abort) -> None:
        intake = self.intakes.pop(receiver.handle, None)
        if intake is not None:
            if message.final:
                by = policy.address_of(self.user)
                await self.process.db(ending.cancel_payload, intake.opened.payload, by=by)
            else:
                await self.detach_intake(intake)

    # -- control events ----------------------------------------------------------------------------------------------

    def taken_over(self, transfer: UUID, lease: int) -> None:
        """A newer connection holds a transfer, an upload under `lease`."""
        for intake in list(self.intakes.values()):
            if intake.opened.transfer == transfer and intake.lease < lease:
                uploading.drop(self, intake, "taken_over", final=False)
        for outflow in list(self.outflows.values()):
            if outflow.waiting.transfer == transfer and lease == 0:
                self.drop_outflow(outflow, "taken_over", final=False)

    def ended(self, transfer: UUID, code: str) -> None:
        """A transfer was ended elsewhere: cancelled in the admin, expired by the sweep."""
        for intake in list(self.intakes.values()):
            if intake.opened.transfer == transfer:
                uploading.drop(self, intake, code, final=True)
        for outflow in list(self.outflows.values()):
            if outflow.waiting.transfer == transfer:
                self.drop_outflow(outflow, code, final=True)

    async def arrived(self, address: str) -> None:
        """A payload has arrived for an address that this connection has joined."""
        if address.startswith(policy.GROUP):
            await self.process.db(deliveries.catch_up, self.user.pk, address)
        self.offering.look()

    # -- writing -----------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        """Send control messages first, then chunks in turns; at last the close."""
        while True:
            self._woken.clear()
            self.connection.queue_acks(time.monotonic())
            await self._send_outbox()
            if self._closing is not None:
                await self._socket.close(*self._closing)
                return
            if not await self._send_chunk():
                await self._woken.wait()

    async def _send_outbox(self) -> None:
        outbox = self.connection.outbox
        while outbox:
            await self._socket.send_text(messages.encode(outbox.popleft()))
            self.connection.sent(time.monotonic())

    async def _send_chunk(self) -> bool:
        """Send the next chunk whose data is here; return whether there was one."""
        if self._closing is not None:
            return False
        for _ in range(len(self.connection.senders)):
            sender = self.connection.next_turn()
            if sender is None:
                return False
            outflow = self.outflows[sender.handle]
            if sender.next_span() is None:
                self.connection.finish(sender, outflow.waiting.sha256)
                return True
            if (frame := outflow.frame()) is not None:
                now = time.monotonic()
                sender.chunk_sent(sender.next_seq, now)
                self.connection.sent(now)
                await self._socket.send_bytes(frame)
                return True
        return False

    # -- time --------------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while not self.closing:
            now = time.monotonic()
            await asyncio.sleep(min(TICK_SECONDS, max(0.0, self.connection.wake_at() - now)) or 0.05)
            self._tick_once(time.monotonic())
            self.wake()
        # The peer does not read: what waits to be sent, the close among it, is given up.
        await asyncio.sleep(CLOSE_SECONDS)
        self._socket.abandon()

    def _tick_once(self, now: float) -> None:
        for event in self.connection.tick(now):
            if isinstance(event, events.HelloMissing):
                self.close(4408, "no hello in time")
            elif isinstance(event, events.PeerSilent):
                self.close(1011, "no answer")
        for receiver in list(self.connection.receivers.values()):
            if receiver.stalled(now) and (intake := self.intakes.get(receiver.handle)) is not None:
                uploading.drop(self, intake, "stalled", final=False)
        for outflow in list(self.outflows.values()):
            if outflow.sender.stalled(now):
                self.drop_outflow(outflow, "stalled", final=False)

    def terms(self) -> Terms:
        options = self._options
        return Terms(window=options.window, segment_size=options.segment_size, max_size=options.max_payload)
