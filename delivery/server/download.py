"""One delivery on one connection: blocks from the cache become the frames that its sender asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from delivery.buffer.blocks import BLOCK_SIZE, GROUP_BLOCKS, GROUP_SIZE, RANGE_GROUPS, Block
from delivery.protocol import frames
from delivery.protocol.sender import Sender, Span
from delivery.server.block_cache import Group
from delivery.server.web_process import WebProcess
from delivery.transfers.deliveries import Waiting

Frame = tuple[bytes, bytes | bytearray | memoryview]


class DownloadSender:
    """Gives the frames of one delivery. Belongs to the event loop of its connection.

    Holds at most the groups that the next chunk lies in and one ahead: what a recipient that does not ack costs is
    bounded by that.
    """

    def __init__(self, process: WebProcess, sender: Sender, waiting: Waiting, changed: Callable[[], None]) -> None:
        self.sender = sender
        self.waiting = waiting
        self.granted = False  # its accept has been entered into the rows
        self.task: asyncio.Task[None] | None = None  # runs it
        self._process = process
        self._changed = changed
        self._groups: dict[int, Group] = {}
        self._wanted = range(0)  # of the numbers of groups, when it was last looked for them
        self._at = -1  # the group in which the last chunk ended
        self._woken = asyncio.Event()

    def grant(self) -> None:
        """Let chunks flow."""
        self.granted = True
        self.wake()

    def wake(self) -> None:
        """Credit or position moved: look whether that asks for other groups than before, and have them fetched."""
        if self.granted and self.waiting.inline is None and self._want() not in (None, self._wanted):
            self._woken.set()

    def frame(self) -> Frame | None:
        """Return the next chunk's header and data, None where that is still to come. The caller sends both as one message.

        The data is the cache's own: all recipients in this process are sent the same bytes.
        """
        span = self.sender.next_span()
        if span is None:
            return None
        if self.waiting.inline is not None:
            data = self.waiting.inline[span.offset : span.offset + span.length]
            return self._frame(span, data)
        if not self.granted:
            return None
        groups = _groups_of(span)
        here = all(number in self._groups for number in groups)
        if not here or self._at != groups[-1]:
            self.wake()  # fetch it, or ahead, and let go of what is behind
        if not here:
            return None
        self._at = groups[-1]
        return self._cut(span)

    async def run(self) -> None:
        """Fetch what the next chunks need, ahead of them, within the credit.

        Raises `TransferAborted` where the payload has ended, `StorageUnavailable`.
        """
        try:
            await self._run()
        finally:
            self._process.readers.leave(self.waiting.payload, self)

    async def _run(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            if (wanted := self._want()) is not None:
                self._wanted = wanted
                await self._fetch(wanted)

    async def _fetch(self, wanted: range) -> None:
        at = wanted[0] // RANGE_GROUPS
        self._process.readers.move(self.waiting.payload, self.waiting.size, self, at)
        for number in list(self._groups):
            if number not in wanted:
                del self._groups[number]
        for number in wanted:
            if number not in self._groups:
                self._groups[number] = await self._process.cache.get(self.waiting.payload, self.waiting.size, number)
                self._changed()
        await self._process.cache.stage_ahead(self.waiting.payload, self.waiting.size, wanted[-1])

    def _want(self) -> range | None:
        """Return the groups that hold the next chunk, and the one after if there is credit for it; None without a chunk."""
        span = self.sender.next_span()
        if span is None:
            return None
        groups = _groups_of(span)
        credit = min(self.sender.limit * self.sender.chunk_size, self.waiting.size)
        return range(groups.start, groups.stop + 1) if groups.stop * GROUP_SIZE < credit else groups

    def _block(self, index: int) -> Block:
        return self._groups[index // GROUP_BLOCKS][index % GROUP_BLOCKS]

    def _cut(self, span: Span) -> Frame:
        index, start = divmod(span.offset, BLOCK_SIZE)
        block = self._block(index)
        if start == 0 and span.length == len(block.data):
            return frames.encode_header(self.sender.handle, span.seq, block.checksum), block.data
        if start + span.length <= len(block.data):
            return self._frame(span, memoryview(block.data)[start : start + span.length])
        # A chunk larger than a block begins at a block and holds whole ones, but for the payload's end.
        last = (span.offset + span.length - 1) // BLOCK_SIZE
        return self._frame(span, b"".join(self._block(number).data for number in range(index, last + 1)))

    def _frame(self, span: Span, data: bytes | bytearray | memoryview) -> Frame:
        return frames.encode_header(self.sender.handle, span.seq, frames.checksum(data)), data


def _groups_of(span: Span) -> range:
    """Return the numbers of the groups that hold a chunk."""
    return range(span.offset // GROUP_SIZE, (span.offset + span.length - 1) // GROUP_SIZE + 1)
