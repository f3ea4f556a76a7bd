"""How a client process talks to the harness: requests in lines of JSON, answers likewise, one at a time."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

Request = dict[str, Any]
Handler = Callable[[Request], Awaitable[Any]]


def say(message: Any) -> None:
    """Send one object to the harness."""
    print(json.dumps(message), flush=True)


async def hear() -> Request | None:
    """Return the next object from the harness, None where it has gone."""
    line = await asyncio.to_thread(sys.stdin.readline)
    return dict(json.loads(line)) if line else None


async def _serve(handlers: dict[str, Handler]) -> None:
    say({})
    while (request := await hear()) is not None:
        say(await handlers[request.pop("do")](request))


def serve(handlers: dict[str, Handler]) -> None:
    """Answer requests `{"do": name, ...}` until the harness goes."""
    gc.freeze()  # what a client process is made of is looked through no more
    gc.set_threshold(10_000)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(handlers))
