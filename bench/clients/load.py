"""Crowds of light clients in one process: idle, coming back, receiving one payload. Runs under `bench/work/venv`.

Requests as `ours` has them. Recipients check every chunk's checksum against the source's and keep nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crc32c

from bench.clients.light import LIMITS, TERMS, LightClient, open_all
from bench.clients.lines import Request, hear, say, serve
from delivery.protocol import events
from delivery.protocol.receiver import Receiver

TICK_SECONDS = 5.0


async def idle(request: Request) -> Any:
    """Be connected, as recipients; says `{}` once all are, and stays until a line comes."""
    clients = await open_all(request["url"], request["tokens"], on_event=lambda one, event: None, receive=True)
    say({})
    await _until_line(clients)
    lost = sum(one.closed.is_set() for one in clients)
    for one in clients:
        one.close()
    return {"lost": lost}


async def _until_line(clients: list[LightClient]) -> None:
    """Answer the server's pings, which `on_ws_frame` does, until the harness says a line."""
    line = asyncio.create_task(hear())
    while not line.done():
        await asyncio.wait([line], timeout=TICK_SECONDS)
        for one in clients:
            one.core.tick(time.monotonic())
            one.flush()


async def reconnect(request: Request) -> Any:
    """Be connected; says `{}` once all are. When the server closes, come back at once, to `next_url`."""
    failures = 0
    codes: list[int] = []
    times: list[float] = []
    closed: list[float] = []

    async def stay(one: LightClient, token: str) -> LightClient | None:
        nonlocal failures
        await one.closed.wait()
        codes.append(one.code or 0)
        closed.append(one.closed_at)
        try:
            again = await LightClient.open(request["next_url"], token, on_event=lambda one, event: None, receive=True)
        except (TimeoutError, OSError):
            failures += 1
            return None
        times.append(time.monotonic())
        return again

    clients = await open_all(request["url"], request["tokens"], on_event=lambda one, event: None, receive=True)
    say({})
    staying = [stay(one, token) for one, token in zip(clients, request["tokens"], strict=True)]
    back = await asyncio.wait_for(asyncio.gather(*staying), request["seconds"])
    for one in back:
        if one is not None:
            one.close()
    return {
        "first_close": min(closed),
        "last_close": max(closed),
        "last_welcome": max(times, default=0.0),
        "failures": failures,
        "codes": {str(code): codes.count(code) for code in set(codes)},
    }


class FanOut:
    """All clients of the process receive one payload, whose chunks have the checksums of `source`."""

    def __init__(self, source: Path, sha256: str) -> None:
        data = source.read_bytes()
        size = LIMITS.chunk_size
        self._checksums = [crc32c.crc32c(data[at : at + size]) for at in range(0, len(data), size)]
        self._sha256 = sha256
        self.offered: list[tuple[LightClient, Receiver]] = []
        self.changed = asyncio.Event()
        self.done = 0
        self.ended = 0.0

    def on_event(self, one: LightClient, event: events.Event) -> None:
        match event:
            case events.ChunkKept():
                if event.chunk.checksum != self._checksums[event.chunk.seq]:
                    raise RuntimeError(f"chunk {event.chunk.seq} is not the source's")
                self._store(event.receiver)
            case events.Offered():
                self.offered.append((one, event.receiver))
                self.changed.set()
            case events.Finished():
                self._store(event.receiver)
                receiver = event.receiver
                if receiver.finish is None or receiver.finish.sha256 != self._sha256:
                    raise RuntimeError("finish has another digest than the source")
                one.core.done(receiver, size=receiver.size or 0, sha256=self._sha256)
                self.done += 1
                self.ended = time.monotonic()
                self.changed.set()

    def _store(self, receiver: Receiver) -> None:
        # The core checked the checksum that came against the data; the payload is dropped, so it counts as stored.
        while (run := receiver.next_run(time.monotonic())) is not None:
            receiver.on_stored(run.end)

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self.changed.clear()
            await self.changed.wait()


async def fan_out(request: Request) -> Any:
    """Receive the payload that is offered to each login. Says `{}` once all are offered it; a line lets them begin."""
    work = FanOut(Path(request["source"]), request["sha256"])
    clients = await open_all(request["url"], request["tokens"], on_event=work.on_event, receive=True)
    await work.until(lambda: len(work.offered) == len(clients))
    say({})
    await hear()
    began = time.monotonic()
    for one, receiver in work.offered:
        one.core.accept(receiver, stored=0, terms=TERMS, now=began)
        one.flush()
    await work.until(lambda: work.done == len(clients))
    await asyncio.sleep(0.1)
    for one in clients:
        one.close()
    return {"began": began, "ended": work.ended}


if __name__ == "__main__":
    serve({one.__name__: one for one in (idle, reconnect, fan_out)})
