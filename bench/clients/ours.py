"""Our Python client, on uvloop as its command line runs it: one process, one request at a time.

Times are monotonic seconds, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from bench.clients.lines import Request, hear, say, serve
from delivery import client
from delivery.client import Client

OPEN_SECONDS = 30.0
LIVE_BLOCK_BYTES = 65_536


def _connect(request: Request, **options: Any) -> Client:
    return client.connect(request["url"], request["token"], open_timeout=OPEN_SECONDS, **options)


async def upload(request: Request) -> Any:
    """Send the file `path` to the addresses `to`."""
    async with _connect(request) as one:
        used = time.process_time()
        began = time.monotonic()
        receipt = await one.send(Path(request["path"]), to=request.get("to", ()))
        ended = time.monotonic()
    return {
        "began": began,
        "ended": ended,
        "cpu": time.process_time() - used,
        "sha256": receipt.sha256,
        "payload": receipt.payload,
    }


async def uploads(request: Request) -> Any:
    """Send each of the files `paths` on a connection of its own, with the login of the same number, all at once."""
    async with AsyncExitStack() as stack:
        logins = zip(request["tokens"], request["paths"], strict=True)
        senders = [
            (await stack.enter_async_context(_connect({"url": request["url"], "token": token})), Path(path))
            for token, path in logins
        ]
        began = time.monotonic()
        receipts = await asyncio.gather(*(one.send(path) for one, path in senders))
        ended = time.monotonic()
    return {
        "began": began,
        "ended": ended,
        "payloads": [receipt.payload for receipt in receipts],
        "sha256": [receipt.sha256 for receipt in receipts],
    }


async def receive(request: Request) -> Any:
    """Save the next delivery below `directory`; without one, hash and drop it. Says `{}` once it is connected."""
    async with _connect(request, receive=True) as one:
        say({})
        async for incoming in one.deliveries():
            used = time.process_time()
            began = time.monotonic()
            path, sha256 = await _take(incoming, request.get("directory"))
            ended = time.monotonic()
            return {
                "began": began,
                "ended": ended,
                "cpu": time.process_time() - used,
                "path": path,
                "sha256": sha256,
                "payload": incoming.payload,
            }
    return None


async def _take(incoming: Any, directory: str | None) -> tuple[str | None, str]:
    if directory is not None:
        path = await incoming.save(directory)
        return str(path), str(incoming.sha256)
    digest = hashlib.sha256()
    async for block in incoming:
        digest.update(block)
    return None, digest.hexdigest()


async def ping_pong(request: Request) -> Any:
    """Send `count` messages of `size` bytes from one connection to another, each after the last came; return seconds."""
    size, count = request["size"], request["count"]
    waits: list[float] = []
    acked: list[float] = []
    sender_login = {"url": request["url"], "token": request["tokens"][0]}
    recipient_login = {"url": request["url"], "token": request["tokens"][1]}
    async with _connect(sender_login) as sender, _connect(recipient_login, receive=True) as recipient:
        arriving = recipient.deliveries()
        for number in range(count + request["warm_up"]):
            message = os.urandom(size)
            began = time.monotonic()
            sending = asyncio.ensure_future(sender.send(message, to=[recipient.user or ""]))
            incoming = await anext(arriving)
            data = await incoming.read()
            came = time.monotonic() - began
            await sending
            if data != message:
                raise RuntimeError("another message came")
            if number >= request["warm_up"]:
                waits.append(came)
                acked.append(time.monotonic() - began)
    return {"seconds": waits, "acked": acked}


async def beside(request: Request) -> Any:
    """Send messages of 1 KiB, each after the last was acked, while the file `path` is sent on the same socket.

    At most `seconds`; the large upload is given up then.
    """
    waits: list[float] = []
    async with _connect(request) as one:
        large = one.start(Path(request["path"]))
        began = time.monotonic()
        await asyncio.sleep(request["settle"])
        while not large.done and time.monotonic() - began < request["seconds"]:
            sent = time.monotonic()
            await one.send(os.urandom(1024))
            waits.append(time.monotonic() - sent)
            await asyncio.sleep(request["pause"])
        share = large.progress.stored / (large.progress.size or 1)
        seconds = time.monotonic() - began
        large.cancel()
    return {"seconds": waits, "share": share, "elapsed": seconds}


async def live(request: Request) -> Any:
    """Keep an upload going for each login, slowly; says `{}` once all move, and waits for a line.

    Returns when each saw its close, as `closes`: monotonic seconds and code of the first close of each connection.
    """
    rate, logins = request["rate"], request["tokens"]
    closes: dict[int, tuple[float, int]] = {}
    async with AsyncExitStack() as stack:
        started = []
        for number, token in enumerate(logins):

            def observe(event: str, detail: dict[str, Any], number: int = number) -> None:
                if event == "closed":
                    closes.setdefault(number, (time.monotonic(), detail["code"]))

            one = await stack.enter_async_context(_connect({**request, "token": token}, observer=observe))
            started.append(one.start(_slow_source(rate)))
        while not all(one.progress.stored for one in started):
            await asyncio.sleep(0.05)
        say({})
        await hear()
        deadline = time.monotonic() + request["seconds"]
        while len(closes) < len(logins) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        for one in started:
            one.cancel()
        await asyncio.sleep(0.2)
    codes = Counter(str(code) for _, code in closes.values())
    return {"closes": sorted(at for at, _ in closes.values()), "codes": codes}


async def _slow_source(rate: float) -> AsyncIterator[bytes]:
    block = os.urandom(LIVE_BLOCK_BYTES)
    while True:
        yield block
        await asyncio.sleep(LIVE_BLOCK_BYTES / rate)


HANDLERS: Sequence[Any] = (upload, uploads, receive, ping_pong, beside, live)

if __name__ == "__main__":
    serve({handler.__name__: handler for handler in HANDLERS})
