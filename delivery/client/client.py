"""What a program holds: a client that stays connected, with its uploads and deliveries (PROTOCOL section 6).

One connection at a time. When it ends the client does what the close code asks: waits, reconnects and resumes, with
smaller chunks after a 1009, or stops with an error that says what to do. Everything runs on the loop that entered it.
"""

from __future__ import annotations

import asyncio
import mimetypes
import random
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from delivery.client.chunk_ceilings import Ceilings, default_ceilings
from delivery.client.connection import EARLY_DATA_BYTES, ClientConnection
from delivery.client.credentials import checked_token, without_credentials
from delivery.client.dialing import MAX_MESSAGE_BYTES, NotNow, check_url, dial, stopped
from delivery.client.download import Downloads, Incoming
from delivery.client.progress import Progress, Statistics
from delivery.client.runtime import Observer, Runtime
from delivery.client.sources import open_source
from delivery.client.upload import Receipt, Upload, Uploads
from delivery.errors import ConnectionStopped, DeliveryError, UsageError
from delivery.protocol import messages
from delivery.protocol.backoff import Closed, Plan, Recovery
from delivery.protocol.frames import is_chunk_size
from delivery.protocol.messages import Hello, UploadOffer, Welcome
from delivery.protocol.rules import MAX_HANDLE, MAX_INTEGER
from delivery.websocket import tcp
from delivery.websocket.client import ClientSocket

CHUNK_BYTES = 262_144
#: Each chunk costs the same Python; but on a line of 64 kbit/s one of these takes a minute, and small messages wait for it.
NEAR_CHUNK_BYTES = 524_288
NEAR_SECONDS = 0.002  # to the server and back: no slow line is as short


def connect(
    url: str,
    token: str | None = None,
    *,
    client_id: str | None = None,
    receive: bool = False,
    groups: Sequence[str] = (),
    chunk_size: int | None = None,
    window: int = 16_777_216,
    open_timeout: float | None = None,
    observer: Observer | None = None,
    ceilings: Ceilings | None = None,
) -> Client:
    """Return a client for `async with`, which connects on entering and stays connected until leaving.

    `url`: ws:// or wss://. `token`: a login, sent as `Authorization: Bearer`; white space around it does not
    count, and it appears in no message, log or traceback. `client_id`: 1..64 characters, the same
    in the next process where that should go on with deliveries of this one; random by default. `receive`: have the
    server offer what waits for this user and for `groups`. `chunk_size`: the largest to send and receive, bytes, a power
    of two from 4,096 to 4,194,304; by default 524,288 to a server that is near, 262,144 elsewhere, where a slow line may be
    between. `window`: the credit of each delivery, bytes. `open_timeout`: seconds to wait for the first welcome, None for
    as long as it takes. `observer`: called on the loop with what happens to the connection.

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
        chunk_size: int | None,
        window: int,
        open_timeout: float | None,
        observer: Observer | None,
        ceilings: Ceilings | None,
    ) -> None:
        self._token = checked_token(token)
        check_url(url, token=self._token)
        if chunk_size is not None and not is_chunk_size(chunk_size):
            raise UsageError(f"chunk_size must be a power of two from 4096 to 4194304, not {chunk_size}")
        if not 1 <= len(client_id) <= 64:
            raise UsageError("client_id must have 1 to 64 characters")
        self._ceilings = ceilings or default_ceilings()
        most = chunk_size or NEAR_CHUNK_BYTES
        self._recovery = Recovery(min(most, self._ceilings.get(url) or most))
        self._runtime = Runtime(self._recovery, observer, proven=self._remember_ceiling)
        self._uploads = Uploads()
        self._downloads = Downloads(self._runtime)
        self.url = url
        self.client_id = client_id
        self.user: str | None = None
        self.groups = groups
        self._receive = receive
        self._window = window
        self._chosen = chunk_size is not None
        self._open_timeout = open_timeout
        self._task: asyncio.Task[None] | None = None
        self._connection: ClientConnection | None = None
        self._welcomed = asyncio.Event()
        self._closing = asyncio.Event()
        self._error: Exception | None = None

    @property
    def statistics(self) -> Statistics:
        """What it counted, over all its connections."""
        return self._runtime.statistics

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(self._open_timeout):
                await self._welcomed.wait()
        except BaseException as error:
            await self.close()
            if isinstance(error, TimeoutError):
                raise TimeoutError(
                    f"{without_credentials(self.url)} did not answer within {self._open_timeout} s"
                ) from None
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
        if self._connection is not None:
            await self._connection.close()
        if self._task is not None:
            await asyncio.wait([self._task])
        self._stop(self._error or ConnectionStopped(1000, "the client was closed"))
        await self._runtime.close()

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
        id of an earlier attempt at the same payload, to go on with it. `deadline`: seconds. `progress`: called on the loop.

        Raises `Refused`, `TransferAborted`, `ConnectionStopped`, `IntegrityError`, `TimeoutError` after `deadline`, what an
        iterator raised, and what `progress` raised. On cancelling, on the deadline and where `progress` raises, the server
        keeps what it has. Raises `UsageError` at once for what no server would take. Other transfers go on in any case.

        An iterator is pulled by one task or thread of its own, across connections, and may pause for as long as it likes.
        A generator is closed when the upload ends.
        """
        upload = self.start(
            payload, to, name=name, content_type=content_type, meta=meta, progress=progress, transfer=transfer
        )
        try:
            async with asyncio.timeout(deadline) as timer:
                return await upload
        except TimeoutError:
            if not timer.expired():
                raise
            raise TimeoutError(f"not sent within {deadline} s: transfer {upload.transfer} can be resumed") from None
        finally:
            upload.detach()  # where it has not ended

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
        if progress is not None and not callable(progress):
            raise UsageError(f"progress must be called, not a {type(progress).__name__}")
        source, suggested, kind = open_source(payload)
        try:
            name = suggested if name is None else name
            content_type = content_type or kind or mimetypes.guess_type(name)[0] or "application/octet-stream"
            offer = UploadOffer(
                transfer=str(transfer or uuid.uuid4()),
                handle=1,  # the connection chooses
                name=_fitting(name),
                size=source.size,
                content_type=content_type[:255],
                chunk_size=self._recovery.chunk_size,
                meta=dict(meta or {}),
                to=(to,) if isinstance(to, str) else tuple(to),
            )
            self._check_offer(offer)
        except (UsageError, TypeError, ValueError, AttributeError) as error:
            source.close()
            raise UsageError(f"cannot send this: {error}") from error
        upload = Upload(source, offer, resumed=transfer is not None, on_progress=progress, runtime=self._runtime)
        self._uploads.add(upload)
        self._runtime.wake()
        return upload

    def _check_offer(self, offer: UploadOffer) -> None:
        """Raise `UsageError` for what no connection could offer: found there, it would be too late for one of many."""
        if self._uploads.sends(offer.transfer):
            raise UsageError(f"transfer {offer.transfer} is being sent already")
        size = MAX_INTEGER if offer.size is None else offer.size
        messages.check(replace(offer, handle=MAX_HANDLE, size=size), messages.FROM_CLIENT)

    # -- receiving -------------------------------------------------------------------------------------------------

    async def deliveries(self) -> AsyncIterator[Incoming]:
        """Yield what the server offers, each payload once; ends when the client is closed.

        Raises `UsageError` unless connected with `receive=True`, and `ConnectionStopped` as soon as the connection
        cannot come back.
        """
        if not self._receive:
            raise UsageError("connect with receive=True to be offered deliveries")
        while (incoming := await self._downloads.next()) is not None:
            yield incoming
        if self._error is not None and not self._closing.is_set():
            raise self._error

    async def expect(self, payload: str) -> Incoming:
        """Return the delivery of one payload as soon as it is offered; `deliveries` does not yield it then.

        For pointers that came another way. Raises `UsageError` unless connected with `receive=True`, and
        `ConnectionStopped` when the connection cannot come back.
        """
        if not self._receive:
            raise UsageError("connect with receive=True to be offered deliveries")
        if self._error is not None:
            raise self._error
        return await self._downloads.claim(payload)

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
            socket = await dial(self.url, self._token, closing=self._closing)
        except NotNow as error:
            plan = self._recovery.refused(random.random())
            self._runtime.tell("refused", url=without_credentials(self.url), error=str(error), wait=round(plan.wait, 3))
            return plan
        if socket is None:
            return Plan(stop=True, wait=0.0, chunk_size=self._recovery.chunk_size)
        chunk_size = self._chunk_size(socket)
        self._connection = connection = ClientConnection(
            socket,
            self._runtime,
            self._uploads,
            self._downloads,
            chunk_size=chunk_size,
            window=self._window,
            welcomed=self._on_welcome,
        )
        try:
            how = await connection.run(self._hello(chunk_size))
        finally:
            self._connection = None
        return self._closed(connection, how)

    def _on_welcome(self, welcome: Welcome) -> None:
        self.user, self.groups = welcome.user, welcome.groups or self.groups
        self._recovery.initial, self._recovery.maximum = welcome.retry["initial"], welcome.retry["max"]
        self._runtime.statistics.connections += 1
        self._welcomed.set()
        self._runtime.tell(
            "connected",
            user=welcome.user,
            groups=list(welcome.groups),
            session=welcome.session,
            max_message=welcome.max_message,
        )

    def _chunk_size(self, socket: ClientSocket) -> int:
        """Return the largest chunk to send over `socket`, in bytes."""
        if self._chosen:
            return self._recovery.chunk_size
        seconds = tcp.round_trip(socket.transport)
        near = seconds is not None and seconds <= NEAR_SECONDS
        return min(self._recovery.chunk_size, NEAR_CHUNK_BYTES if near else CHUNK_BYTES)

    def _hello(self, chunk_size: int) -> Hello:
        return Hello(
            client=self.client_id,
            max_message=MAX_MESSAGE_BYTES,
            receive=self._receive,
            chunk_size=chunk_size,
            early_data=EARLY_DATA_BYTES,
            groups=self.groups if self._receive else (),
        )

    def _closed(self, connection: ClientConnection, how: Closed) -> Plan:
        if self._closing.is_set():
            return Plan(stop=True, wait=0.0, chunk_size=self._recovery.chunk_size)
        plan = self._recovery.closed(how, random.random())
        if plan.stop:
            self._runtime.tell("closed", code=how.code, reason=connection.reason, wait=None, chunk_size=plan.chunk_size)
            raise stopped(
                how.code,
                connection.reason,
                max_message=connection.max_message,
                chunk_size=plan.chunk_size,
                has_login=self._token is not None or self._welcomed.is_set(),
            )
        self._runtime.tell(
            "closed", code=how.code, reason=connection.reason, wait=round(plan.wait, 3), chunk_size=plan.chunk_size
        )
        if plan.shrunk:
            self._remember_ceiling(plan.chunk_size)
        return plan

    def _remember_ceiling(self, chunk_bytes: int) -> None:
        self._ceilings.remember(self.url, chunk_bytes)

    def _stop(self, error: Exception) -> None:
        self._error = self._error or error
        self._uploads.end(error)
        self._downloads.end(error)
        self._welcomed.set()


def _fitting(name: str) -> str:
    """Return a name of at most 255 characters, its extension kept."""
    if len(name) <= 255:
        return name
    stem, dot, extension = name.rpartition(".")
    return f"{stem[: 254 - len(extension)]}.{extension}" if dot and len(extension) < 32 else name[:255]
