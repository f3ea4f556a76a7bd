"""The client of plain Channels: the `websockets` library, as ours uses it."""

from __future__ import annotations

import os
import time
from typing import Any

from websockets.asyncio.client import connect

from bench.clients.lines import Request, serve


async def ping_pong(request: Request) -> Any:
    """Send `count` messages of `size` bytes from one socket to another, each after the last came; return seconds."""
    waits: list[float] = []
    options: dict[str, Any] = {"compression": None, "proxy": None}
    async with (
        connect(f"{request['url']}/alice/bob", **options) as sender,
        connect(f"{request['url']}/bob/alice", **options) as recipient,
    ):
        for number in range(request["count"] + request["warm_up"]):
            message = os.urandom(request["size"])
            began = time.monotonic()
            await sender.send(message)
            data = await recipient.recv()
            came = time.monotonic() - began
            if data != message:
                raise RuntimeError("another message came")
            if number >= request["warm_up"]:
                waits.append(came)
    return {"seconds": waits}


if __name__ == "__main__":
    serve({"ping_pong": ping_pong})
