"""Reading ahead: the chunks of one upload on one connection, made ready in a thread before their turn comes.

A chunk is read straight behind the space of its header into a buffer that is used for all of them, and is hashed, has
its checksum taken and is masked while it lies in the processor's cache: the loop's thread only writes what comes out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from delivery.errors import DeliveryError, IntegrityError
from delivery.protocol import frames
from delivery.protocol.sender import Sender
from delivery.websocket.frames import ROOM_BYTES, masked_frame

if TYPE_CHECKING:
    from delivery.client.uploads import Upload

BATCH_BYTES = 1_048_576  # made ready at a time on the loop
THREAD_BATCH_BYTES = 2_097_152  # in a thread; handing over to it costs about as much as sending two chunks
DATA_AT = ROOM_BYTES + frames.HEADER_BYTES  # in the buffer that a chunk is read into


@dataclass(frozen=True, slots=True)
class Block:
    """A chunk that is ready: `frame` is what goes on the wire, `length` its data in bytes."""

    seq: int
    frame: bytes
    length: int


class Feed:
    """What is read ahead for `upload`, which `sender` sends. `abort` tells the peer; `failed` takes a broken source."""

    def __init__(
        self,
        upload: Upload,
        sender: Sender,
        *,
        pool: Executor,
        wake: Callable[[], None],
        abort: Callable[..., None],
    ) -> None:
        self.upload = upload
        self.sender = sender
        self.digest: str | None = None
        self._source = upload.source
        self._pool = pool
        self._wake = wake
        self._abort = abort
        self._ready: deque[Block] = deque()
        self._buffer = bytearray()
        self._waiting = False  # its turn came and nothing was ready
        self._task: asyncio.Task[None] | None = None
        self._voided = False  # what the running task reads is no longer wanted

    # -- for the link ----------------------------------------------------------------------------------------------

    def accepted(self) -> None:
        """The server said where to go on."""
        self._void()
        self._source.forget(self.sender.acked_bytes)
        self._source.resumed_at(self.sender.next_seq * self.sender.chunk_size, self._pool)

    def rewound(self) -> None:
        """The server wants chunks again."""
        self._void()

    def acked(self) -> None:
        self._source.forget(self.sender.acked_bytes)

    def next_block(self) -> Block | None:
        """Return the chunk that is to be sent now, None while it is not read yet, or the payload ended or failed."""
        try:
            return self._next_block()
        except (OSError, DeliveryError) as error:
            self._fail(error)
            return None

    def _next_block(self) -> Block | None:
        self._note_end()
        span = self.sender.next_span()
        if span is None:
            return None
        if self._ready and self._ready[0].seq != span.seq:
            self._void()
        if not self._ready:
            if self._in_memory and not self._task:
                self._ready.extend(self._read(span.seq, span.seq + 1))
            else:
                self._wait()
                self._read_ahead(span.seq)
                return None
        block = self._ready.popleft()
        self._read_ahead(block.seq + 1)
        return block

    def want_digest(self) -> None:
        """Have the digest computed for `finish`; the sender waits for it, unless it is known at once."""
        self.digest = self._source.digest_at_once()
        if self.digest is not None:
            return
        self._wait()
        if self._task is None:
            self._task = asyncio.create_task(self._run(self._compute_digest()))

    def adjust(self) -> None:
        """Make the sender stand still or go on, after a pause or when something is ready."""
        self.sender.paused = self._waiting or self.upload.paused
        if not self.sender.paused:
            self._wake()

    def abort(self, code: str, *, final: bool) -> None:
        self._abort(self, code, final=final)

    def close(self) -> None:
        """Let go; a read that is under way in its thread ends by itself."""
        self._ready.clear()
        if self._task is not None:
            self._task.cancel()

    @property
    def waits_for_source(self) -> bool:
        """Whether only the producer of the payload can get this on: all that it gave is sent, and acked."""
        producer = self._source.producer
        return self._waiting and producer is not None and producer.pulling and not self.sender.in_flight

    @property
    def _in_memory(self) -> bool:
        return self._source.instant and self._source.size is not None

    # -- reading ---------------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        self._waiting = True
        self.adjust()

    def _void(self) -> None:
        self._ready.clear()
        self._voided = self._task is not None

    def _note_end(self) -> None:
        """Tell the sender where a payload of unknown size ends, before its last chunk or `finish` goes."""
        size, chunk_size = self._source.size, self.sender.chunk_size
        if self.sender.size is not None or size is None:
            return
        if frames.chunk_count(size, chunk_size) < self.sender.sent:
            raise IntegrityError(f"{self.upload.name} ends after {size} bytes, the server has more under this transfer")
        self.sender.end(size)

    def _read_ahead(self, first: int) -> None:
        """Start reading the next batch, where less than a batch is ready and there is credit for more."""
        batch_bytes = BATCH_BYTES if self._source.instant else THREAD_BATCH_BYTES
        batch = max(1, batch_bytes // self.sender.chunk_size)
        if self._task is not None or len(self._ready) > batch // 2 or (self._ready and self._in_memory):
            return
        start = self._ready[-1].seq + 1 if self._ready else first
        end = min(start + batch, self.sender.limit)
        if (size := self._source.size) is not None:
            end = min(end, frames.chunk_count(size, self.sender.chunk_size))
        if end > start:
            self._task = asyncio.create_task(self._run(self._read_batch(start, end)))

    async def _run(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - a program's iterator may raise anything: its upload fails with it
            self._task = None
            self._fail(error)
            return
        self._task = None
        if self._voided:
            self._voided = False
            self._void()
        self._waiting = False
        self.adjust()

    async def _read_batch(self, start: int, end: int) -> None:
        size = self.sender.chunk_size
        await self._source.prepare((start + 1) * size, self._pool)
        if self._voided:  # the server asked for other chunks, perhaps of another size
            return
        if self._source.size is None:  # what a slow producer gave goes at once
            end = min(end, self._source.pulled // size)
        start = max(start, self.sender.acked)  # what was acked meanwhile is forgotten
        if self._source.instant:
            blocks = self._read(start, end)
        else:
            blocks = await asyncio.get_running_loop().run_in_executor(self._pool, self._read, start, end)
        self._ready.extend(blocks)

    def _read(self, start: int, end: int) -> list[Block]:
        """Read chunks `start` to `end` (exclusive), fewer where the payload ends. In a thread, one at a time."""
        blocks: list[Block] = []
        chunk_size, size = self.sender.chunk_size, self._source.size
        for seq in range(start, end):
            wanted = chunk_size if size is None else min(chunk_size, size - seq * chunk_size)
            if wanted <= 0:
                break
            blocks.append(self._read_one(seq, seq * chunk_size, wanted))
        return blocks

    def _read_one(self, seq: int, offset: int, wanted: int) -> Block:
        if len(self._buffer) < DATA_AT + wanted:
            self._buffer = bytearray(DATA_AT + wanted)
        data = memoryview(self._buffer)[DATA_AT : DATA_AT + wanted]
        length = self._source.read_into(data, offset)
        if length < wanted and self._source.size is not None:
            raise IntegrityError(f"{self.upload.name} became shorter while it was sent: send it again")
        frames.HEADER.pack_into(self._buffer, ROOM_BYTES, self.sender.handle, seq, frames.checksum(data[:length]))
        return Block(seq, masked_frame(self._buffer, DATA_AT + length), length)

    def _fail(self, error: Exception) -> None:
        self._abort(self, "cancelled", final=True)
        self.upload.fail(_readable(error, self.upload.name))

    async def _compute_digest(self) -> None:
        digest = await self._source.digest(self._pool)
        self._source.check()
        self.digest = digest


def _readable(error: Exception, name: str) -> Exception:
    if isinstance(error, OSError):
        return IntegrityError(f"cannot read {name}: {error.strerror or error}")
    return error
