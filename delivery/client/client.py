"""What a program holds: a client that stays connected, with its uploads and deliveries (PROTOCOL section 6).

One connection at a time. When it ends the client does what the close code asks: waits, reconnects and resumes, with
smaller chunks after a 1009, or stops with an error that says what to do. Everything runs on the loop that entered it.
"""

from __future__ import annotations

import asyncio
import mimetypes
import random
import ssl
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import websockets
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.typing import Subprotocol

from delivery.client.ceiling import Ceilings, default_ceilings
from delivery.client.deliveries import Incoming
from delivery.client.link import MAX_MESSAGE_BYTES, Link
from delivery.client.reasons import refused_by_http, stopped
from delivery.client.sinks import Saved
from delivery.client.sources import open_source
from delivery.client.statistics import Statistics
from delivery.client.uploads import Progress, Receipt, Upload
from delivery.errors import ConnectionStopped, DeliveryError, TransferAborted, UsageError
from delivery.protocol.backoff import Closed, Plan, Recovery
from delivery.protocol.frames import is_chunk_size
from delivery.protocol.messages import DeliveryOffer, Hello, UploadOffer, Welcome

SUBPROTOCOL = Subprotocol("delivery.v1")
OPEN_SECONDS = 10.0
SETTLED_MOST = 10_000
THREADS = 8
Observer = Callable[[str, dict[str, Any]], None]


def connect(
    url: str,
    token: str | None = None,
    *,
    client_id: str | None = None,
    receive: bool = False,
    groups: Sequence[str] = (),
    chunk_size: int = 262_144,
    window: int = 16_777_216,
    open_timeout: float | None = None,
    observer: Observer | None = None,
    ceilings: Ceilings | None = None,
) -> Client:
    """Return a client for `async with`, which connects on entering and stays connected until leaving.

    `url`: ws:// or wss://. `token`: a login, sent as `Authorization: Bearer`. `client_id`: 1..64 characters, the same
    in the next process where that should go on with deliveries of this one; random by default. `receive`: have the
    server offer what waits for this user and for `groups`. `chunk_size`: the largest to send and receive, bytes, a power
    of two from 4,096 to 4,194,304. `window`: the credit of each delivery, bytes. `open_timeout`: seconds to wait for
    the first welcome, None for as long as it takes. `observer`: called on the loop with what happens to the connection.

    Entering raises `ConnectionStopped` where the server refuses us, `UsageError` for arguments that cannot be right,
    `TimeoutError` after `open_timeout`.
    """
    return Client(
        url,
        token,
        client_id=client_id or uuid.uuid4().hex,
        receive=receive,
        groups=tuple(groups),
        chunk_size=chunk_size,
        window=window,
        open_timeout=open_timeout,
        observer=observer,
        ceilings=ceilings,
    )


class Client:
    """A client that reconnects by itself. `statistics` counts what happened; `user` and `groups` as the server says."""

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        client_id: str,
        receive: bool,
        groups: tuple[str, ...],
        chunk_size: int,
        window: int,
        open_timeout: float | None,
        observer: Observer | None,
        ceilings: Ceilings | None,
    ) -> None:
        if urlsplit(url).scheme not in ("ws", "wss"):
            raise UsageError(f"expected a ws:// or wss:// URL, got {url!r}")
        if not is_chunk_size(chunk_size):
            raise UsageError(f"chunk_size must be a power of two from 4096 to 4194304, not {chunk_size}")
        if not 1 <= len(client_id) <= 64:
            raise UsageError("client_id must have 1 to 64 characters")
        self.url = url
        self.client_id = client_id
        self.user: str | None = None
        self.groups = groups
        self.statistics = Statistics()
        self.settled: OrderedDict[str, Saved | str] = OrderedDict()
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="delivery-client")
        self._token = token
        self._receive = receive
        self._window = window
        self._open_timeout = open_timeout
        self._observer = observer
        self._ceilings = ceilings or default_ceilings()
        self.recovery = Recovery(min(chunk_size, self._ceilings.get(url) or chunk_size))
        self._uploads: dict[str, Upload] = {}
        self._incoming: dict[str, Incoming] = {}
        self._waiting: asyncio.Queue[Incoming | None] = asyncio.Queue()
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None
        self._beside: set[asyncio.Task[Any]] = set()
        self._welcomed = asyncio.Event()
        self._closing = asyncio.Event()
        self._error: Exception | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(self._open_timeout):
                await self._welcomed.wait()
        except BaseException as error:
            await self.close()
            if isinstance(error, TimeoutError):
                raise TimeoutError(f"{self.url} did not answer within {self._open_timeout} s") from None
            raise
        if self._error is not None:
            await self.close()
            raise self._error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. What is unfinished stays with the server, and can be resumed by its transfer id."""
        self._closing.set()
        if self._link is not None:
            await self._link.close()
        if self._task is not None:
            await asyncio.wait([self._task])
        self._stop(self._error or ConnectionStopped(1000, "the client was closed"))
        if self._beside:
            await asyncio.wait(self._beside)
        # Not waited for: an iterator may block in its thread for as long as it likes.
        self.pool.shutdown(wait=False, cancel_futures=True)

    # -- sending ---------------------------------------------------------------------------------------------------

    async def send(
        self,
        payload: Any,
        to: Sequence[str] | str = (),
        *,
        name: str | None = None,
        content_type: str | None = None,
        meta: Mapping[str, str] | None = None,
        progress: Callable[[Progress], None] | None = None,
        transfer: str | uuid.UUID | None = None,
        deadline: float | None = None,
    ) -> Receipt:
        """Send a payload and return the receipt, once the server has stored and checked all of it.

        `payload`: a `Path`, bytes, `str` (text, never a path), `dict` or `list` (JSON), an open binary file, a plain or
        async iterator of bytes. `to`: addresses as `user:42` or `group:ops`; empty for the site itself. `transfer`: the
        id of an earlier attempt at the same payload, to go on with it. `deadline`: seconds.

        Raises `Refused`, `TransferAborted`, `ConnectionStopped`, `IntegrityError`, `UsageError`, and `TimeoutError` after
        `deadline`. On cancelling and on the deadline the server keeps what it has.
        """
        upload = self.start(
            payload, to, name=name, content_type=content_type, meta=meta, progress=progress, transfer=transfer
        )
        try:
            async with asyncio.timeout(deadline):
                return await upload
        except TimeoutError:
            upload.detach()
            raise TimeoutError(f"not sent within {deadline} s: transfer {upload.transfer} can be resumed") from None
        except asyncio.CancelledError:
            upload.detach()
            raise

    def start(
        self,
        payload: Any,
        to: Sequence[str] | str = (),
        *,
        name: str | None = None,
        content_type: str | None = None,
        meta: Mapping[str, str] | None = None,
        progress: Callable[[Progress], None] | None = None,
        transfer: str | uuid.UUID | None = None,
    ) -> Upload:
        """Start sending and return the handle that pauses, resumes, cancels and can be awaited. As `send` otherwise."""
        if self._error is not None:
            raise self._error
        if self._closing.is_set():
            raise UsageError("the client is closed")
        source, suggested, kind = open_source(payload)
        name = suggested if name is None else name
        offer = UploadOffer(
            transfer=str(transfer or uuid.uuid4()),
            handle=1,  # the connection chooses
            name=_fitting(name),
            size=source.size,
            content_type=(content_type or kind or mimetypes.guess_type(name)[0] or "application/octet-stream")[:255],
            chunk_size=self.recovery.chunk_size,
            meta=dict(meta or {}),
            to=(to,) if isinstance(to, str) else tuple(to),
        )
        if (running := self._uploads.get(offer.transfer)) is not None and not running.done:
            raise UsageError(f"transfer {offer.transfer} is being sent already")
        upload = Upload(source, offer, resumed=transfer is not None, on_progress=progress, wake=self.wake)
        self._uploads[offer.transfer] = upload
        self.wake()
        return upload

    # -- receiving -------------------------------------------------------------------------------------------------

    async def deliveries(self) -> AsyncIterator[Incoming]:
        """Yield what the server offers, each payload once; ends when the client is closed.

        Raises `UsageError` unless connected with `receive=True`, and `ConnectionStopped` as soon as the connection
        cannot come back.
        """
        if not self._receive:
            raise UsageError("connect with receive=True to be offered deliveries")
        while True:
            incoming = await self._waiting.get()
            if incoming is None:
                self._waiting.put_nowait(None)  # for the next one who asks
                if self._error is not None and not self._closing.is_set():
                    raise self._error
                return
            if not incoming.done:
                yield incoming

    # -- the life of connections -----------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while not self._closing.is_set():
                plan = await self._connect_once()
                if not self._closing.is_set():
                    await self._wait(plan.wait)
        except DeliveryError as error:
            self._stop(error)
        except Exception as error:
            self._stop(error)
            raise

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            pass

    async def _connect_once(self) -> Plan:
        """Connect and serve until that connection ends; return what to do then. Raises where nothing helps."""
        try:
            socket = await self._open()
        except (OSError, TimeoutError, websockets.InvalidHandshake, EOFError) as error:
            return self._refused(error)
        if socket is None:
            return Plan(stop=True, wait=0.0, chunk_size=self.recovery.chunk_size)
        if socket.subprotocol != SUBPROTOCOL:
            await socket.close()
            raise ConnectionStopped(1002, f"{self.url} does not speak {SUBPROTOCOL}: is it the URL of another socket?")
        self._link = link = Link(self, socket, chunk_size=self.recovery.chunk_size, window=self._window)
        try:
            how = await link.run(self._hello())
        finally:
            self._link = None
        return self._closed(link, how)

    async def _open(self) -> ClientConnection | None:
        """Open a WebSocket; None where the client is being closed meanwhile."""
        opening = asyncio.ensure_future(self._handshake())
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait([opening, closing], return_when=asyncio.FIRST_COMPLETED)
        finally:
            closing.cancel()
            if not opening.done():
                opening.cancel()
                await asyncio.wait([opening])
        return None if opening.cancelled() else opening.result()

    async def _handshake(self) -> ClientConnection:
        host = urlsplit(self.url).hostname or ""
        try:
            return await open_socket(
                self.url,
                subprotocols=[SUBPROTOCOL],
                additional_headers={"Authorization": f"Bearer {self._token}"} if self._token else None,
                compression=None,
                proxy=None if host == "localhost" or host.startswith("127.") or host == "::1" else True,
                open_timeout=OPEN_SECONDS,
                close_timeout=2.0,
                ping_interval=None,  # the protocol has its own, which browsers can answer too
                max_size=MAX_MESSAGE_BYTES,
                max_queue=32,
                write_limit=1_048_576,
            )
        except ssl.SSLCertVerificationError as error:
            raise ConnectionStopped(1015, f"the server's certificate is not trusted: {error.verify_message}") from error
        except (websockets.InvalidURI, websockets.InvalidProxy) as error:
            raise UsageError(str(error)) from error

    def _hello(self) -> Hello:
        return Hello(
            client=self.client_id,
            max_message=MAX_MESSAGE_BYTES,
            receive=self._receive,
            chunk_size=self.recovery.chunk_size,
            early_data=65_536,
            groups=self.groups if self._receive else (),
        )

    def _refused(self, error: BaseException) -> Plan:
        if isinstance(error, websockets.InvalidStatus):
            final = refused_by_http(error.response.status_code)
            if final is not None:
                raise final from error
        plan = self.recovery.refused(random.random())
        text = str(error) or type(error).__name__
        if isinstance(error, websockets.InvalidStatus):
            text = f"HTTP {error.response.status_code} from {self.url} (is that the right path?)"
        self.tell("refused", error=text, wait=round(plan.wait, 3))
        return plan

    def _closed(self, link: Link, how: Closed) -> Plan:
        if self._closing.is_set():
            return Plan(stop=True, wait=0.0, chunk_size=self.recovery.chunk_size)
        plan = self.recovery.closed(how, random.random())
        if plan.stop:
            self.tell("closed", code=how.code, reason=link.reason, wait=None, chunk_size=plan.chunk_size)
            raise stopped(how.code, link.reason, max_message=link.max_message, chunk_size=plan.chunk_size)
        self.tell("closed", code=how.code, reason=link.reason, wait=round(plan.wait, 3), chunk_size=plan.chunk_size)
        if plan.shrunk:
            self._ceilings.remember(self.url, plan.chunk_size)
        return plan

    def _stop(self, error: Exception) -> None:
        self._error = self._error or error
        for upload in list(self._uploads.values()):
            upload.fail(error)
        for incoming in list(self._incoming.values()):
            incoming.fail(error)
        self._uploads.clear()
        self._incoming.clear()
        self._welcomed.set()
        self._waiting.put_nowait(None)

    # -- for link, uploads and deliveries --------------------------------------------------------------------------

    def wake(self) -> None:
        if self._link is not None:
            self._link.wake()

    def tell(self, event: str, **details: Any) -> None:
        """Tell the observer."""
        if self._observer is not None:
            self._observer(event, details)

    def welcomed(self, link: Link, welcome: Welcome) -> None:
        self.user, self.groups = welcome.user, welcome.groups or self.groups
        self.recovery.initial, self.recovery.maximum = welcome.retry["initial"], welcome.retry["max"]
        self.statistics.connections += 1
        self._welcomed.set()
        self.tell("connected", user=welcome.user, session=welcome.session, max_message=welcome.max_message)

    def uploads_due(self, now: float) -> list[Upload]:
        """Return the uploads that are to be offered now, and forget those that ended."""
        due = []
        for transfer, upload in list(self._uploads.items()):
            if upload.due(now):
                due.append(upload)
            elif upload.done:
                del self._uploads[transfer]
        return due

    def resumed(self, transfer: str, offset: int, role: str, *, reached: int) -> None:
        """Tell that a transfer goes on at `offset`, and how much goes again of what had reached `reached` before."""
        self.statistics.resumes += 1
        self.tell("resumed", transfer=transfer, offset=offset, role=role, again=max(0, reached - offset))

    def note_sent(self, upload: Upload, offset: int, length: int) -> None:
        self.statistics.sent_bytes += length
        if offset < upload.highest_sent:
            self.statistics.resent_bytes += min(length, upload.highest_sent - offset)
        upload.highest_sent = max(upload.highest_sent, offset + length)

    def note_received(self, incoming: Incoming, offset: int, length: int) -> None:
        self.statistics.received_bytes += length
        if offset < incoming.highest_received:
            self.statistics.received_again_bytes += min(length, incoming.highest_received - offset)
        incoming.highest_received = max(incoming.highest_received, offset + length)
        self.recovery.progressed()

    def note_accepted(self, incoming: Incoming, position: int) -> None:
        if incoming.resumed_before or position:
            self.resumed(incoming.transfer, position, "delivery", reached=incoming.highest_received)
        incoming.resumed_before = True

    def incoming_for(self, offer: DeliveryOffer) -> Incoming:
        """Return what the program holds of this transfer; offers it to the program where nobody has taken it up."""
        incoming = self._incoming.get(offer.transfer)
        if incoming is None or incoming.done or incoming.abandoned:
            incoming = self._incoming[offer.transfer] = Incoming(self, offer, self.pool)
            self._waiting.put_nowait(incoming)
        return incoming

    def settle(self, transfer: str, outcome: Saved | str) -> None:
        """Remember how a delivery ended, should it be offered again because our answer was lost."""
        self.settled[transfer] = outcome
        self._incoming.pop(transfer, None)
        while len(self.settled) > SETTLED_MOST:
            self.settled.popitem(last=False)

    def refuse(self, incoming: Incoming, verdict: str) -> None:
        self.settle(incoming.transfer, verdict)
        self.detach(incoming, "declined" if verdict == "declined" else "cancelled", final=True)

    def detach(self, incoming: Incoming, code: str = "paused", *, final: bool = False) -> None:
        if self._link is not None and incoming.intake is not None:
            self._link.drop(incoming.intake, code, final=final)

    def lost(self, incoming: Incoming, error: TransferAborted) -> None:
        """The server ended a delivery, or gave it to a newer connection."""
        self._incoming.pop(incoming.transfer, None)
        incoming.fail(error)

    def background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)
        return task

    async def keep_until_done(self, work: Coroutine[Any, Any, None]) -> None:
        """Await `work`, which goes on even if whoever waits for it is cancelled."""
        await asyncio.shield(self.background(work))


def _fitting(name: str) -> str:
    """Return a name of at most 255 characters, its extension kept."""
    if len(name) <= 255:
        return name
    stem, dot, extension = name.rpartition(".")
    return f"{stem[: 254 - len(extension)]}.{extension}" if dot and len(extension) < 32 else name[:255]
