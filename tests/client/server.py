"""A small server for the client's tests: a real socket, driven by the same protocol core, that keeps bytes in memory.

It can be told to misbehave at the edges: to close with a code, to refuse messages, to lose what it did not store.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from delivery.errors import ProtocolViolation
from delivery.protocol import events, frames, messages
from delivery.protocol.connection import Connection, Limits, Side
from delivery.protocol.messages import DeliveryOffer, GoingAway, Hello, Reject, UploadOffer, Welcome
from delivery.protocol.receiver import Receiver, Terms
from delivery.protocol.states import State


@dataclass
class Stored:
    offer: UploadOffer
    data: bytearray = field(default_factory=bytearray)
    sha256: str | None = None
    payload: str = field(default_factory=lambda: str(uuid.uuid4()))
    cancelled: bool = False


@dataclass
class Waiting:
    offer: DeliveryOffer
    data: bytes
    done: dict[str, str] = field(default_factory=dict)  # client id: digest
    declined: set[str] = field(default_factory=set)
    aborted: list[tuple[str, str]] = field(default_factory=list)


class CoreServer:
    """Serves on 127.0.0.1. `refuse(message) -> code` closes instead of taking a message."""

    def __init__(self) -> None:
        self.port = 0
        self.max_message = 2_097_152
        self.chunk_size = 262_144
        self.window = 16_777_216
        self.early_data = 65_536
        self.heartbeat = 20.0
        self.of_before = False  # says `stalled` of uploads itself, and pong before what came
        self.groups: tuple[str, ...] = ()  # that it grants
        self.segment = 1_048_576
        self.token: str | None = None
        self.uploads: dict[str, Stored] = {}
        self.waiting: dict[str, Waiting] = {}
        self.sessions: list[Session] = []
        self.hellos: list[Hello] = []
        self.offers: list[UploadOffer] = []
        self.sizes: list[int] = []
        self.closes: Counter[int] = Counter()
        self.refuse: Callable[[bytes], int | None] = lambda message: None
        self.send_until: int | None = None  # bytes of each delivery, then nothing more comes
        self.store_until: int | None = None  # bytes of each upload, then nothing more is stored
        self.answer: Callable[[UploadOffer], dict[str, Any] | None] = lambda offer: None
        self.before_welcome: Callable[[], object] = lambda: None
        self.before_done: Callable[[], bool] = lambda: True  # False: drop the connection instead of saying done
        self._server: Server | None = None

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/delivery/"

    async def start(self, port: int = 0) -> None:
        self._server = await serve(
            self._serve,
            "127.0.0.1",
            port,
            subprotocols=["delivery.v1"],
            max_size=None,
            compression=None,
            ping_interval=None,
            max_queue=None,  # a paused reader would not see the answer to its close
            process_request=self._check,
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close(close_connections=True)
            await self._server.wait_closed()
            self._server = None

    async def _check(self, connection: ServerConnection, request: Request) -> Response | None:
        if self.token == "forbidden":
            return connection.respond(403, "no")
        return None

    async def _serve(self, socket: ServerConnection) -> None:
        if self.token and socket.request.headers.get("Authorization") != f"Bearer {self.token}":
            await socket.close(4401, "login missing")
            return
        session = Session(self, socket)
        self.sessions.append(session)
        try:
            await session.run()
        finally:
            self.sessions.remove(session)

    def offer(self, data: bytes, name: str = "scan.tif", **members: Any) -> Waiting:
        """Have a payload wait for everybody; whoever is connected is offered it at once."""
        offer = DeliveryOffer(
            transfer=str(uuid.uuid4()),
            handle=1,
            name=name,
            size=len(data),
            chunk_size=self.chunk_size,
            payload=str(uuid.uuid4()),
            sender="user:1",
            **members,
        )
        waiting = self.waiting[offer.transfer] = Waiting(offer, data)
        for session in self.sessions:
            session.offer_waiting()
            session.wake.set()
        return waiting

    def go_away(self, code: int = 1001, reason: str = "server_draining", retry_after: float = 0.05) -> None:
        for session in self.sessions:
            session.ending = (GoingAway(reason=reason, retry_after=retry_after), code)
            session.wake.set()

    def cut(self) -> None:
        for session in self.sessions:
            session.socket.transport.abort()


class Session:
    def __init__(self, server: CoreServer, socket: ServerConnection) -> None:
        self.server, self.socket = server, socket
        limits = Limits(max_message=server.max_message, chunk_size=server.chunk_size, early_data=server.early_data)
        self.core = Connection(Side.SERVER, limits, now=time.monotonic(), heartbeat=server.heartbeat)
        self.wake = asyncio.Event()
        self.kept: dict[int, dict[int, bytes]] = {}
        self.ending: tuple[GoingAway | None, int] | None = None
        self.client = ""
        self.offered: set[str] = set()
        self.frozen = False
        if server.of_before:
            queue_acks = self.core.queue_acks
            self.core.queue_acks = lambda now, *, at_once=False: queue_acks(now)  # type: ignore[method-assign]

    def stall(self) -> None:
        """Say what a server of before said where an upload's next chunk did not come for 60 s."""
        for receiver in list(self.core.receivers.values()):
            self.core.abort(receiver, "stalled", final=False)
        self.wake.set()

    async def run(self) -> None:
        tasks = [asyncio.ensure_future(work) for work in (self._read(), self._write(), self._tick())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, ProtocolViolation):
                    self.server.closes[result.code] += 1
                    await self.socket.close(result.code, result.reason)
                elif isinstance(result, Exception) and not isinstance(result, ConnectionClosed):
                    raise result

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            self.core.tick(time.monotonic())
            self.store()
            self.wake.set()

    async def _read(self) -> None:
        async for message in self.socket:
            now = time.monotonic()
            if isinstance(message, str):
                happened = self.core.receive_text(message, now)
            else:
                self.server.sizes.append(len(message))
                if (code := self.server.refuse(message)) is not None:
                    self.server.closes[code] += 1
                    if code == 1006:
                        self.socket.transport.abort()
                    else:
                        await self.socket.close(code, "message too big")
                    return
                happened = self.core.receive_bytes(message, now)
            for event in happened:
                self._on(event)
            self.store()
            self.wake.set()

    def _on(self, event: events.Event) -> None:
        server = self.server
        match event:
            case events.Greeted(hello):
                self.client = hello.client
                server.hellos.append(hello)
                server.before_welcome()
                self.core.welcome(
                    Welcome(
                        session="s",
                        user="user:1",
                        groups=server.groups,
                        max_message=server.max_message,
                        chunk_size=server.chunk_size,
                        window=server.window,
                        early_data=server.early_data,
                        heartbeat=server.heartbeat,
                        retry={"initial": 0.02, "max": 0.1},
                    )
                )
                if hello.receive:
                    self.offer_waiting()
            case events.Offered(receiver):
                self._on_offer(receiver)
            case events.ChunkKept(receiver, chunk):
                self.kept.setdefault(receiver.handle, {})[chunk.seq] = bytes(chunk.data)
            case events.ReceiverAborted(receiver, message):
                if message.final:
                    server.uploads[receiver.transfer].cancelled = True
            case events.Completed(sender, sha256, _):
                server.waiting[sender.transfer].done[self.client] = sha256
            case events.Rejected(sender, _):
                server.waiting[sender.transfer].declined.add(self.client)
            case events.SenderAborted(sender, message):
                server.waiting[sender.transfer].aborted.append((self.client, message.code))
                if message.final:
                    server.waiting[sender.transfer].declined.add(self.client)

    def _on_offer(self, receiver: Receiver) -> None:
        server, offer = self.server, receiver.offer
        server.offers.append(offer)
        if (answer := server.answer(offer)) is not None:
            self.core.outbox.append(Reject(transfer=offer.transfer, handle=offer.handle, **answer))
            receiver.state = State.REJECTED
            del self.core.receivers[offer.handle]
            return
        stored = server.uploads.setdefault(offer.transfer, Stored(offer))
        if stored.cancelled:
            self.core.reject(receiver, "cancelled")
        elif stored.sha256 is not None:
            self.core.done(receiver, size=len(stored.data), sha256=stored.sha256, payload=stored.payload)
        else:
            for other in server.sessions:
                for held in list(other.core.receivers.values()):
                    if held.transfer == offer.transfer and held is not receiver:
                        other.core.abort(held, "taken_over", final=False)
                        other.wake.set()
            terms = Terms(window=server.window, segment_size=server.segment, max_size=2**40)
            self.core.accept(receiver, stored=len(stored.data), terms=terms, now=time.monotonic())

    def store(self) -> None:
        if self.frozen:
            return
        for receiver in list(self.core.receivers.values()):
            stored = self.server.uploads.get(receiver.transfer)
            if self.server.store_until is not None and len(stored.data) >= self.server.store_until:
                continue
            while (run := receiver.next_run(time.monotonic())) is not None:
                for seq in range(run.start, run.end):
                    stored.data += self.kept[receiver.handle].pop(seq)
                receiver.on_stored(run.end)
            if receiver.complete:
                stored.sha256 = hashlib.sha256(stored.data).hexdigest()
                if not self.server.before_done():
                    self.socket.transport.abort()
                    return
                if receiver.expected_digests() - {stored.sha256}:
                    self.core.abort(receiver, "digest", final=True)
                else:
                    self.core.done(receiver, size=len(stored.data), sha256=stored.sha256, payload=stored.payload)

    def offer_waiting(self) -> None:
        for transfer, waiting in self.server.waiting.items():
            finished = self.client in waiting.done or self.client in waiting.declined
            if self.core.can_offer() and transfer not in self.offered and not finished:
                self.offered.add(transfer)
                self.core.offer(waiting.offer, first=False, now=time.monotonic())

    async def _write(self) -> None:
        while True:
            self.core.queue_acks(time.monotonic())
            while self.core.outbox:
                await self.socket.send(messages.encode(self.core.outbox.popleft()))
                self.core.sent(time.monotonic())
            if self.ending is not None:
                message, code = self.ending
                if message is not None:
                    await self.socket.send(messages.encode(message))
                await self.socket.close(code, "going away")
                return
            sender = self.core.next_turn()
            if sender is None:
                self.wake.clear()
                await self.wake.wait()
                continue
            span = sender.next_span()
            if span is not None and self.server.send_until is not None and span.offset >= self.server.send_until:
                self.wake.clear()
                await self.wake.wait()
                continue
            data = self.server.waiting[sender.transfer].data
            if span is None:
                self.core.finish(sender, hashlib.sha256(data).hexdigest())
                continue
            await self.socket.send(
                frames.encode(sender.handle, span.seq, data[span.offset : span.offset + span.length])
            )
            sender.chunk_sent(span.seq, time.monotonic())
