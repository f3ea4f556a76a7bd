"""Ending things to the end: Ctrl-C may come while they are being ended already."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Await `work` even where whoever awaits it is cancelled; the cancellation is raised afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.done():
                raise
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()


async def end_process(process: asyncio.subprocess.Process, *signals: int, grace_seconds: float) -> None:
    """Send the signals one after the other until the process has ended, each with its own grace."""
    for number in signals:
        if process.returncode is not None:
            return
        process.send_signal(number)
        try:
            async with asyncio.timeout(grace_seconds):
                await process.wait()
        except TimeoutError:
            continue
