"""What tests of a site's own sockets say and hear."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from websockets.asyncio.client import ClientConnection


def json_of(size: int) -> str:
    """Return a JSON object of exactly `size` bytes."""
    return json.dumps({"text": ""})[:-2] + "y" * (size - 12) + '"}'


async def hear(socket: ClientConnection, seconds: float = 20.0) -> Any:
    """Return the next message, read as JSON."""
    async with asyncio.timeout(seconds):
        return json.loads(await socket.recv())


async def close_of(socket: ClientConnection, seconds: float = 20.0) -> tuple[int | None, str | None]:
    """Wait for the server to close; return its code and reason. What it said before is dropped."""
    async with asyncio.timeout(seconds):
        await socket.wait_closed()
    return socket.close_code, socket.close_reason
