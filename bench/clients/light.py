"""One light client on the project's protocol core and picows: many fit into a process. Runs under `bench/work/venv`."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any

from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from delivery.protocol import events, frames, messages
from delivery.protocol.connection import Connection, Limits, Side
from delivery.protocol.messages import Hello, UploadOffer
from delivery.protocol.receiver import Terms

LIMITS = Limits(max_message=16 * 1024 * 1024, chunk_size=262_144, early_data=65_536)
TERMS = Terms(window=16 * 1024 * 1024, segment_size=1024 * 1024, max_size=2**53 - 1)
OPEN_AT_ONCE = 50


class LightClient(WSListener):
    """One connection. `on_event` is called with what the core says happened."""

    def __init__(self, on_event: Callable[[LightClient, events.Event], None], *, receive: bool) -> None:
        self.core = Connection(Side.CLIENT, LIMITS, now=time.monotonic())
        self.welcomed = asyncio.Event()
        self.closed = asyncio.Event()
        self.user = ""
        self.code: int | None = None
        self.closed_at = 0.0
        self._on_event = on_event
        self._receive = receive
        self._transport: WSTransport | None = None

    @classmethod
    async def open(cls, url: str, token: str, **options: Any) -> LightClient:
        """Connect; returns once it is welcomed."""
        _, one = await ws_connect(
            lambda: cls(**options),
            url,
            extra_headers={"Authorization": f"Bearer {token}", "Sec-WebSocket-Protocol": "delivery.v1"},
            max_frame_size=LIMITS.max_message,
        )
        await one.welcomed.wait()
        return one

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        hello = Hello(
            client=uuid.uuid4().hex,
            max_message=LIMITS.max_message,
            chunk_size=LIMITS.chunk_size,
            early_data=LIMITS.early_data,
            receive=self._receive,
        )
        self.core.hello(hello)
        self.flush()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        now = time.monotonic()
        if frame.msg_type == WSMsgType.BINARY:
            happened = self.core.receive_bytes(frame.get_payload_as_memoryview(), now)
        elif frame.msg_type == WSMsgType.TEXT:
            happened = self.core.receive_text(frame.get_payload_as_utf8_text(), now)
        elif frame.msg_type == WSMsgType.CLOSE:
            self.code, self.closed_at = int(frame.get_close_code() or 1005), now
            transport.send_close(frame.get_close_code(), None)
            transport.disconnect()
            return
        else:
            if frame.msg_type == WSMsgType.PING:
                transport.send_pong(frame.get_payload_as_bytes())
            return
        for event in happened:
            if isinstance(event, events.Welcomed):
                self.user = event.welcome.user
                self.welcomed.set()
            self._on_event(self, event)
        if happened or self.core.outbox:
            self.flush()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.code, self.closed_at = self.code or 1006, self.closed_at or time.monotonic()
        self.closed.set()

    def flush(self) -> None:
        """Send what waits: messages, and the chunks of early data."""
        if self._transport is None or self.closed.is_set():
            return
        self.core.queue_acks(time.monotonic())
        while self.core.outbox:
            self._transport.send(WSMsgType.TEXT, messages.encode(self.core.outbox.popleft()).encode())

    def send_message(self, data: bytes, to: str) -> None:
        """Send a small payload as early data."""
        now = time.monotonic()
        offer = UploadOffer(
            transfer=str(uuid.uuid4()),
            handle=1,
            name="",
            size=len(data),
            content_type="application/octet-stream",
            chunk_size=LIMITS.chunk_size,
            to=(to,),
        )
        sender = self.core.offer(offer, first=True, now=now)
        self.flush()
        if self._transport is not None:
            self._transport.send(WSMsgType.BINARY, frames.encode(sender.handle, 0, data))
        sender.chunk_sent(0, now)
        self.core.finish(sender, None)
        self.flush()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.disconnect()


async def open_all(url: str, tokens: list[str], **options: Any) -> list[LightClient]:
    """Connect once for each login, some at a time."""
    gate = asyncio.Semaphore(OPEN_AT_ONCE)

    async def one(token: str) -> LightClient:
        async with gate:
            return await LightClient.open(url, token, **options)

    return await asyncio.gather(*(one(token) for token in tokens))
