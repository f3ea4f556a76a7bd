"""Whole payloads that come in one message: plain mode (PROTOCOL section 7) and large messages on a site's own sockets.

They take the same path as any upload: the server plays the sender, with a receiver and an intake of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from delivery import conf
from delivery.buffer import pool
from delivery.errors import Refused, TransferAborted
from delivery.protocol.frames import Chunk, checksum
from delivery.protocol.messages import Finish, UploadOffer
from delivery.protocol.receiver import Receiver, Terms
from delivery.server.inline_upload import InlineIntake
from delivery.server.upload import Intake, Reports
from delivery.server.web_process import Process
from delivery.transfers import outcomes, uploads
from delivery.transfers.holders import Holder
from delivery.transfers.uploads import FinishedUpload, Opened

STORE_SECONDS = 60.0
HANDLE = 1


async def store(
    process: Process, user: Any, data: bytes, *, content_type: str, to: Sequence[str] = ()
) -> FinishedUpload:
    """Store a whole payload of `user` for the addresses `to`; return once it is complete.

    Raises `Refused` and `TransferAborted` with their codes, `BufferUnavailable`. What is not complete after 60 s, or
    when the caller is cancelled, is cancelled: nobody could resume it.
    """
    offer = UploadOffer(
        transfer=str(uuid4()),
        handle=HANDLE,
        name="",
        size=len(data),
        content_type=content_type,
        chunk_size=conf.current().chunk_size,
        to=tuple(to),
    )
    opened = await _open(process, user, offer)
    try:
        async with asyncio.timeout(STORE_SECONDS):
            return await _Sending(process, offer, opened, data).run()
    except BaseException as error:
        await asyncio.shield(process.db(outcomes.cancel_payload, opened.payload, by=""))
        if isinstance(error, TimeoutError):
            raise TransferAborted("busy", f"not stored within {STORE_SECONDS:.0f} s", final=False) from error
        raise


async def _open(process: Process, user: Any, offer: UploadOffer) -> Opened:
    if process.draining:
        raise Refused("draining")
    admitted = await process.admit(user, offer)
    order = await pool.aclock()
    holder = Holder(user.pk, f"whole:{secrets.token_hex(8)}", secrets.token_hex(8), order, channel="")
    workers = bool(await process.workers_alive())
    opening = asyncio.ensure_future(process.db(uploads.open_upload, user, holder, offer, admitted, workers=workers))
    try:
        opened = await asyncio.shield(opening)
    except asyncio.CancelledError:
        with contextlib.suppress(Refused):
            opened = await opening  # it runs to its end all the same
            await process.db(outcomes.cancel_payload, opened.payload, by="")
        raise
    if isinstance(opened, FinishedUpload):  # the transfer's id is new
        raise RuntimeError("a new upload was complete already")
    return opened


async def _confirm() -> None:
    """A whole message is asked for its login when it comes, and stored within a moment."""


class _Sending:
    """Feeds the chunks of one message to its receiver, as far as credit goes.

    Nothing that it holds refers to it: a message of 16 MiB would else wait for Python's collector of cycles, which a
    socket that sends one after the other hardly ever wakes.
    """

    def __init__(self, process: Process, offer: UploadOffer, opened: Opened, data: bytes) -> None:
        options = conf.current()
        self._data = memoryview(data)
        self._changed = asyncio.Event()
        self._receiver = Receiver(offer)
        terms = Terms(window=options.window, segment_size=options.segment_size, max_size=opened.max_size)
        self._receiver.accept(chunk_size=offer.chunk_size, stored=0, terms=terms, now=time.monotonic())
        kind = InlineIntake if opened.inline else Intake
        rewind = functools.partial(_rewind, self._changed)
        self._intake = kind(process, self._receiver, opened, Reports(self._changed.set, rewind, _confirm))

    async def run(self) -> FinishedUpload:
        """Send everything; return once it is complete. Raises `TransferAborted`."""
        taking = asyncio.create_task(self._intake.run(), name="delivery whole payload")
        feeding = asyncio.create_task(self._feed(), name="delivery whole payload feed")
        try:
            await asyncio.wait({taking, feeding}, return_when=asyncio.FIRST_COMPLETED)
            if not taking.done():
                feeding.result()  # it ends by its error alone, and nothing would come any more
            return await taking
        finally:
            taking.cancel()
            feeding.cancel()
            await asyncio.gather(taking, feeding, return_exceptions=True)
            del taking, feeding  # what they raised holds this frame

    async def _feed(self) -> None:
        while True:
            self._changed.clear()
            self._feed_some()
            await self._changed.wait()

    def _feed_some(self) -> None:
        receiver = self._receiver
        receiver.next_ack(time.monotonic())  # raises the limit as chunks are stored
        while receiver.received < min(receiver.limit, receiver.chunks or 0):
            seq = receiver.received
            data = self._data[receiver.offset(seq) : receiver.offset(seq + 1)]
            chunk = Chunk(HANDLE, seq, checksum(data), data)
            receiver.on_chunk(chunk, time.monotonic())
            self._intake.keep(chunk)
        if receiver.received == receiver.chunks and receiver.finish is None:
            receiver.on_finish(Finish(handle=HANDLE, chunks=receiver.received, size=len(self._data)))
            self._intake.wake()


def _rewind(changed: asyncio.Event, receiver: Receiver, seq: int) -> None:
    receiver.lost(seq, "lost")
    changed.set()
