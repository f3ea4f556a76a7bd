"""One small upload on one connection: its bytes go directly into their row, without Redis or a worker."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from delivery.errors import PolicyUnavailable, Refused, StaleLease, TransferAborted
from delivery.protocol.frames import Chunk
from delivery.protocol.receiver import Receiver
from delivery.server.upload import LOOK_SECONDS, Reports
from delivery.server.web_process import WebProcess
from delivery.transfers import inline, recipients
from delivery.transfers.uploads import FinishedUpload, Opened


class InlineUploadReceiver:
    """Takes in one inline payload. The counterpart of `UploadReceiver`, with the same calls."""

    unflushed = 0
    worker = ""
    worker_at = 0.0

    def __init__(self, process: WebProcess, receiver: Receiver, opened: Opened, reports: Reports) -> None:
        self.receiver = receiver
        self.opened = opened
        self.lease = opened.lease
        self.task: asyncio.Task[None] | None = None  # runs it
        self._process = process
        self._reports = reports
        self._data = bytearray()  # from chunk `receiver.handed` on
        self._woken = asyncio.Event()
        self._hurried = False

    def keep(self, chunk: Chunk) -> None:
        self._data += chunk.data
        self._woken.set()

    def wake(self) -> None:
        self._woken.set()

    def hurry(self) -> None:
        """Have all that was taken in stored now."""
        self._hurried = True
        self._woken.set()

    @property
    def settled(self) -> bool:
        """Whether all that was taken in is stored."""
        return self.receiver.stored >= self.receiver.received

    async def run(self) -> FinishedUpload:
        """Take in everything; return once the payload is complete. Raises `TransferAborted`."""
        try:
            while True:
                self._woken.clear()
                if (finished := await self._step()) is not None:
                    return finished
                await self._sleep()
        except StaleLease:
            raise TransferAborted("taken_over", final=False) from None

    async def detach(self) -> None:
        """Store what was taken in."""
        try:
            await self._store_due(rest=True)
        except StaleLease:
            return

    async def _step(self) -> FinishedUpload | None:
        if self.receiver.finish is not None and self.receiver.received == self.receiver.chunks:
            return await self._complete()
        await self._store_due(rest=self._hurried)
        return None

    async def _store_due(self, *, rest: bool) -> None:
        now = time.monotonic()
        while (run := self.receiver.rest(now) if rest else self.receiver.next_run(now)) is not None:
            offset = self.receiver.offset(run.start)
            data = bytes(self._data[: self.receiver.offset(run.end) - offset])
            del self._data[: len(data)]
            await self._process.db(inline.store, self.opened.transfer, self.lease, offset, data)
            self.receiver.on_stored(run.end)
            self._reports.changed()

    async def _complete(self) -> FinishedUpload:
        """Store the rest and complete the payload, in one transaction."""
        receiver = self.receiver
        await self._reports.confirm()
        users = await self._recipients()
        receiver.rest(time.monotonic())
        finished = await self._process.db(
            inline.complete,
            self.opened.transfer,
            self.lease,
            receiver.offset(receiver.stored),
            bytes(self._data),
            receiver.expected_digests(),
            users,
        )
        if finished is None:
            raise TransferAborted("digest")
        receiver.on_stored(receiver.received)
        return finished

    async def _recipients(self) -> list[Any]:
        payload = self.opened.payload
        try:
            return await self._process.policy.ask(self.opened.user, payload, lambda: recipients.of_payload(payload))
        except (PolicyUnavailable, Refused) as error:
            raise TransferAborted("busy", str(error), final=False) from error

    async def below(self, limit: int) -> None:
        """Nothing to wait for: an inline payload is smaller than any limit."""

    async def _sleep(self) -> None:
        if self._woken.is_set():
            return
        at = self.receiver.wake_at()
        try:
            # Never at once: what is due by now waits for a peer that does not read.
            async with asyncio.timeout(None if at is None else max(LOOK_SECONDS, at - time.monotonic())):
                await self._woken.wait()
        except TimeoutError:
            pass
