"""The progress of one command: whether anything moves, and whether the same command could resume it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from delivery.client.cli.reporting import Report
from delivery.client.cli.wording import sentence
from delivery.client.progress import Progress
from delivery.errors import DeliveryError

LOOK_SECONDS = 0.25
_TROUBLE = frozenset({"refused", "closed", "waiting"})


class NoProgress(DeliveryError):
    """Nothing moved for as long as the user was ready to wait; the message holds the last reason that is known."""


class Activity:
    """Follows the events and the progress of one command, and passes them on to its `report`. Belongs to its loop.

    `connected`: the server has welcomed us and that connection lives. `groups`: those that it granted then.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        self.connected = False
        self.groups: frozenset[str] = frozenset()
        self._reason = ""
        self._moved_at = time.monotonic()
        self._farthest: dict[str, tuple[int, int]] = {}
        self._resumable: set[str] = set()

    @property
    def still_seconds(self) -> float:
        """The seconds since anything moved."""
        return time.monotonic() - self._moved_at

    @property
    def resumable(self) -> bool:
        """Whether the same command, given again, would go on with something."""
        return bool(self._resumable)

    def move(self) -> None:
        """Note that something moved: the wait for progress begins anew."""
        self._moved_at = time.monotonic()

    def event(self, name: str, details: dict[str, Any]) -> None:
        """Take what happened to the connection or a transfer."""
        if name == "connected":
            self.connected, self._reason, self.groups = True, "", frozenset(details["groups"])
        elif name in _TROUBLE:
            self.connected = self.connected and name == "waiting"
            self._reason = sentence(name, {**details, "wait": None})
        elif name == "done":
            self._resumable.discard(details["transfer"])
            self.move()
        self.report.event(name, details)

    def progress(self, label: str, progress: Progress, *, resumable: bool) -> None:
        """Take how far a transfer is. `resumable`: the same command could go on with it in another process."""
        stored, received = self._farthest.get(progress.transfer, (-1, -1))
        if progress.stored > stored or progress.received > received:
            self._farthest[progress.transfer] = max(stored, progress.stored), max(received, progress.received)
            self.move()
            self._reason = self._reason if not self.connected else ""
        if resumable:
            self._resumable.add(progress.transfer)
        self.report.progress(label, progress)

    def forget(self, transfer: str) -> None:
        """Note that nothing can go on with a transfer: it ended for good."""
        self._resumable.discard(transfer)

    @asynccontextmanager
    async def limited(
        self, seconds: float | None, *, excused: Callable[[], bool] = lambda: False
    ) -> AsyncIterator[None]:
        """Raise `NoProgress` in the body once nothing has moved for `seconds`; None: never.

        Time counts from the start of the command, not while `excused` says that the wait is the user's own.
        """
        if seconds is None:
            yield
            return
        watching = None
        try:
            async with asyncio.timeout(None) as scope:
                watching = asyncio.create_task(self._watch(scope, seconds, excused))
                yield
        except TimeoutError:
            if not scope.expired():
                raise
            reason = f": {self._reason}" if self._reason else ""
            raise NoProgress(f"no progress for {seconds:g} s{reason}") from None
        finally:
            if watching is not None:
                watching.cancel()
                await asyncio.wait([watching])

    async def _watch(self, scope: asyncio.Timeout, seconds: float, excused: Callable[[], bool]) -> None:
        while (left := seconds - self.still_seconds) > 0:
            await asyncio.sleep(min(left, LOOK_SECONDS))
            if excused():
                self.move()
        scope.reschedule(asyncio.get_running_loop().time())
