"""Clients in a ring, each sending small messages to the next; what arrives is counted. Runs under `bench/work/venv`.

As many messages of each client are on their way at a time as delivery.v1 allows unanswered offers, for ours and for
plain Channels.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from bench.clients.light import TERMS, LightClient, open_all
from bench.clients.lines import Request, serve
from delivery.protocol import events
from delivery.protocol.limits import MAX_UNANSWERED_OFFERS as WINDOW_MESSAGES
from delivery.protocol.receiver import Receiver


class Chatter:
    """Each client sends messages to the next, as many at a time as the protocol allows; what arrives is counted."""

    def __init__(self, size: int) -> None:
        self.running = True
        self.clients: list[LightClient] = []
        self.arrived = 0
        self.acked = 0
        self._data = os.urandom(size)

    def start(self) -> None:
        for one in self.clients:
            for _ in range(WINDOW_MESSAGES):
                self._send(one)

    def _send(self, one: LightClient) -> None:
        to = self.clients[(self.clients.index(one) + 1) % len(self.clients)]
        one.send_message(self._data, to.user)

    def on_event(self, one: LightClient, event: events.Event) -> None:
        match event:
            case events.ChunkKept():
                self.arrived += event.chunk.data == self._data
            case events.Offered():
                one.core.accept(event.receiver, stored=0, terms=TERMS, now=time.monotonic())
            case events.Finished():
                self._finished(one, event.receiver)
            case events.Completed():
                self.acked += 1
                if self.running:
                    self._send(one)
            case events.Rejected() | events.SenderAborted():
                raise RuntimeError(f"the server says {event.message.code}")

    def _finished(self, one: LightClient, receiver: Receiver) -> None:
        while (run := receiver.next_run(time.monotonic())) is not None:
            receiver.on_stored(run.end)
        if receiver.finish is not None and receiver.finish.sha256 is not None:
            one.core.done(receiver, size=receiver.size or 0, sha256=receiver.finish.sha256)


async def rate(request: Request) -> Any:
    """Have all clients send messages of `size` bytes round in a ring for `seconds`; return messages a second."""
    work = Chatter(request["size"])
    work.clients = await open_all(request["url"], request["tokens"], on_event=work.on_event, receive=True)
    work.start()
    counted = await _rates(request["seconds"], lambda: work.arrived)
    work.running = False
    await asyncio.sleep(0.5)
    for one in work.clients:
        one.close()
    return {"rate": counted, "arrived": work.arrived, "acked": work.acked}


async def _rates(seconds: float, count: Callable[[], int]) -> float:
    """Return how fast `count` grew in `seconds`, after a fifth of that to get going."""
    await asyncio.sleep(seconds / 5)
    first, began = count(), time.monotonic()
    await asyncio.sleep(seconds)
    return (count() - first) / (time.monotonic() - began)


class PlainSocket(WSListener):
    """A socket of plain Channels in the same ring: the next message goes when one of the window has come through."""

    def __init__(self, ring: PlainRing) -> None:
        self._ring = ring
        self.transport: WSTransport | None = None

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport

    def send(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.send(WSMsgType.BINARY, data)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.BINARY:
            self._ring.came(self, frame.get_payload_as_bytes())


class PlainRing:
    """Sockets that each send to the next."""

    def __init__(self, size: int) -> None:
        self.sockets: list[PlainSocket] = []
        self.arrived = 0
        self.running = True
        self._data = os.urandom(size)

    def start(self) -> None:
        for one in self.sockets:
            for _ in range(WINDOW_MESSAGES):
                one.send(self._data)

    def came(self, one: PlainSocket, data: bytes) -> None:
        self.arrived += data == self._data
        if self.running:  # its sender has one fewer on its way
            self.sockets[self.sockets.index(one) - 1].send(self._data)


async def plain_rate(request: Request) -> Any:
    """Do what `rate` does, against plain Channels."""
    ring = PlainRing(request["size"])
    count = request["count"]
    for number in range(count):
        _, one = await ws_connect(lambda: PlainSocket(ring), f"{request['url']}/u{number}/u{(number + 1) % count}")
        ring.sockets.append(one)
    ring.start()
    counted = await _rates(request["seconds"], lambda: ring.arrived)
    ring.running = False
    for one in ring.sockets:
        if one.transport is not None:
            one.transport.disconnect()
    return {"rate": counted, "arrived": ring.arrived}


if __name__ == "__main__":
    serve({one.__name__: one for one in (rate, plain_rate)})
