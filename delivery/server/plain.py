"""Whole payloads in one message: plain mode (PROTOCOL section 7), and large messages on a site's own sockets.

A client without the subprotocol sends whole payloads, one per message. They take the path of any upload: the server acts as
the sender, with a receiver of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import secrets
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs
from uuid import uuid4

from delivery import conf
from delivery.auth import Login
from delivery.buffer import pool
from delivery.errors import BufferUnavailable, Refused, TransferAborted
from delivery.policy import Quota
from delivery.protocol.codes import CLOSE_CODES
from delivery.protocol.frames import Chunk, checksum
from delivery.protocol.messages import Finish, UploadOffer
from delivery.protocol.receiver import Receiver, Terms
from delivery.server import web_process
from delivery.server.inline_upload import InlineUploadReceiver
from delivery.server.ports import ConnectionClosed, Socket
from delivery.server.upload import Reports, UploadReceiver
from delivery.server.web_process import WebProcess
from delivery.transfers import outcomes, uploads
from delivery.transfers.holders import Holder
from delivery.transfers.uploads import FinishedUpload, Opened

logger = logging.getLogger(__name__)

TEXT = "text/plain; charset=utf-8"
BINARY = "application/octet-stream"
CLOSE_SECONDS = 2.0
STORE_SECONDS = 60.0
HANDLE = 1


def addresses_of(query: bytes) -> tuple[str, ...]:
    """Return the `to` parameters of a URL's query.

    An empty one counts: it names nobody and is refused. Left out, a script's unset variable would turn "for Bob" into
    "for the site".
    """
    return tuple(parse_qs(query.decode("latin-1"), keep_blank_values=True).get("to", ()))


class PlainConnection:
    """One plain connection: one message is stored after the other. Its consumer calls `start`, `take` and `end`."""

    def __init__(self, socket: Socket, login: Login, to: tuple[str, ...]) -> None:
        self.process = web_process.current()
        self.login: Login | None = login
        self._socket = socket
        self._user = login.user
        self._to = to
        self._quota = Quota()  # the policy's, from `start` on
        self._storing: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin, or close at once where the user has too many connections."""
        self._quota = await self.process.questions.quota_of(self._user)
        self.process.sockets.add(self)
        if self.process.counts.enter(self._user.pk) > self._quota.connections:
            self._close(4429)

    async def end(self) -> None:
        """Let go: the socket is gone. What came whole is stored all the same, unless this process is about to end."""
        if self._storing is not None:
            if self.process.draining:
                self._storing.cancel()
            await asyncio.gather(self._storing, return_exceptions=True)
        if self._closing is not None:
            self._closing.cancel()
            await asyncio.gather(self._closing, return_exceptions=True)
        if self in self.process.sockets:
            self.process.sockets.discard(self)
            self.process.counts.leave(self._user.pk)

    async def take(self, message: str | bytes) -> None:
        """Take one payload. Waits for the one before it: TCP slows the peer down."""
        data = message.encode() if isinstance(message, str) else message
        if self._storing is not None:
            await asyncio.wait({self._storing})
        if self._closing is not None:
            return
        if len(data) > conf.current().plain_max_message:
            self._close(1009)
            return
        work = self._store(data, TEXT if isinstance(message, str) else BINARY)
        self._storing = asyncio.create_task(work, name="delivery plain")

    async def _store(self, data: bytes, content_type: str) -> None:
        try:
            self._check_rate()
            finished = await store_whole(self.process, self._user, data, content_type=content_type, to=self._to)
        except (Refused, TransferAborted) as refused:
            answer = _failed(refused.code, refused.message)
        except BufferUnavailable as error:
            answer = _failed("busy", str(error))
        except Exception:
            logger.exception("plain payload not stored")
            self._close(1011)
            return
        else:
            answer = _stored(finished)
        try:
            await self._socket.send_text(json.dumps(answer, separators=(",", ":")))
        except ConnectionClosed:
            return  # it is stored all the same

    def _check_rate(self) -> None:
        if self.process.offers.count(self._user.pk, self._quota.offers_per_minute) is not None:
            raise Refused("rate", f"at most {self._quota.offers_per_minute} payloads a minute")

    # -- closing -----------------------------------------------------------------------------------------------------

    def revoke(self, reason: str) -> None:
        """The login no longer holds: close, and take nothing more."""
        if self._storing is not None:
            self._storing.cancel()
        self._close(4401, reason)

    async def leave(self, reason: str) -> None:
        """Close with 1001 once the message in hand is answered; `reason` has no place in plain mode."""
        if self._storing is not None:
            await asyncio.wait({self._storing}, timeout=conf.current().drain_grace / 2)
        await self._close(1001)

    def _close(self, code: int, reason: str = "") -> asyncio.Task[None]:
        """Close in a task of its own: a peer that does not read must not hold up who asks for it."""
        if self._closing is None:
            self._closing = asyncio.create_task(
                self._close_socket(code, reason or CLOSE_CODES[code].reason), name="delivery plain close"
            )
        return self._closing

    async def _close_socket(self, code: int, reason: str) -> None:
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._socket.close(code, reason)
        except ConnectionClosed:
            return
        except TimeoutError:
            self._socket.abandon()


def _stored(finished: FinishedUpload) -> dict[str, Any]:
    return {
        "type": "stored",
        "payload": str(finished.payload),
        "size": finished.size,
        "sha256": finished.sha256,
    }


def _failed(code: str, message: str) -> dict[str, Any]:
    return {"type": "failed", "code": code, "message": message}


async def store_whole(
    process: WebProcess, user: Any, data: bytes, *, content_type: str, to: Sequence[str] = ()
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
            return await _WholeSender(process, offer, opened, data).run()
    except BaseException as error:
        await asyncio.shield(process.db(outcomes.cancel_payload, opened.payload, by=""))
        if isinstance(error, TimeoutError):
            raise TransferAborted("busy", f"not stored within {STORE_SECONDS:.0f} s", final=False) from error
        raise


async def _open(process: WebProcess, user: Any, offer: UploadOffer) -> Opened:
    if process.draining:
        raise Refused("draining")
    admitted = await process.admit(user, offer)
    order = await pool.aclock()
    holder = Holder(user.pk, f"whole:{secrets.token_hex(8)}", secrets.token_hex(8), order, channel="")
    workers = bool(await process.workers.alive())
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


class _WholeSender:
    """Feeds the chunks of one message to its receiver, as far as credit goes.

    Nothing that it holds refers to it: a message of 16 MiB would else wait for Python's collector of cycles, which a
    socket that sends one after the other hardly ever wakes.
    """

    def __init__(self, process: WebProcess, offer: UploadOffer, opened: Opened, data: bytes) -> None:
        options = conf.current()
        self._data = memoryview(data)
        self._changed = asyncio.Event()
        self._receiver = Receiver(offer)
        terms = Terms(window=options.window, segment_size=options.segment_size, max_size=opened.max_size)
        self._receiver.accept(chunk_size=offer.chunk_size, stored=0, terms=terms, now=time.monotonic())
        kind = InlineUploadReceiver if opened.inline else UploadReceiver
        rewind = functools.partial(_rewind, self._changed)
        self._upload = kind(process, self._receiver, opened, Reports(self._changed.set, rewind, _confirm))

    async def run(self) -> FinishedUpload:
        """Send everything; return once it is complete. Raises `TransferAborted`."""
        taking = asyncio.create_task(self._upload.run(), name="delivery whole payload")
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
            self._upload.keep(chunk)
        if receiver.received == receiver.chunks and receiver.finish is None:
            receiver.on_finish(Finish(handle=HANDLE, chunks=receiver.received, size=len(self._data)))
            self._upload.wake()


def _rewind(changed: asyncio.Event, receiver: Receiver, seq: int) -> None:
    receiver.lost(seq, "lost")
    changed.set()
