"""Large messages on a site's own sockets (PROTOCOL section 8): the socket carries a pointer, the bytes go beside it.

class Chat(LargeMessageMixin, AsyncJsonWebsocketConsumer):
    async def receive_json(self, content, **kwargs):
        await self.send_large(content)

    async def receive_large(self, payload):
        ...

A Channels consumer handles one event at a time. Storing runs outside of its handlers, so that small messages pass meanwhile.
A stored payload comes back through the consumer's `receive`, so its handlers never run at the same time.

See docs/how-to/large-messages.md.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from channels.generic.websocket import AsyncWebsocketConsumer

from delivery import api, conf
from delivery.auth import Login
from delivery.errors import BufferUnavailable, Refused, TransferAborted, UsageError
from delivery.models import Payload, PayloadState
from delivery.protocol.codes import CLOSE_CODES
from delivery.server import message_limits, web_process
from delivery.server.plain import store_whole
from delivery.server.web_process import WebProcess
from delivery.transfers import outcomes

logger = logging.getLogger(__name__)

ARRIVED = "delivery.large_arrived"  # names the consumer's handler
INTERNAL = "internal"
Receive = Callable[[], Awaitable[dict[str, Any]]]
POINTER = "delivery.large"
JSON_TYPE = "application/json"
TEXT_TYPE = "text/plain; charset=utf-8"
BINARY_TYPE = "application/octet-stream"
CLOSE_SECONDS = 2.0

# What the socket is closed with where a large message is refused; 1013 for what may work later.
_CLOSES = {"too_large": 1009, "draining": 1001, "forbidden": 1008, "cancelled": 1008, "digest": 1011, INTERNAL: 1011}


class LargeMessageMixin:
    """For an `AsyncWebsocketConsumer` or `AsyncJsonWebsocketConsumer`, named before it among the bases.

    Needs a logged-in user in `scope["user"]` (Channels' `AuthMiddlewareStack`): payloads belong to somebody. Without
    one, small messages pass and larger ones are refused with 1009.

    `large_limit`: the largest message in bytes that the socket carries itself, both ways; None: DELIVERY["INLINE_LIMIT"].
    `large_expires`: how long a large message that is sent waits for its recipient; None: DELIVERY["PAYLOAD_EXPIRY"].
    `large_links`: put a signed `url` into pointers, for clients that fetch over HTTP; needs `delivery.urls`.
    """

    large_limit: int | None = None
    large_expires: datetime.timedelta | None = None
    large_links: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if AsyncWebsocketConsumer in order and order.index(AsyncWebsocketConsumer) < order.index(LargeMessageMixin):
            raise UsageError(f"{cls.__name__} names LargeMessageMixin after its consumer: name it first")

    # -- for the site ------------------------------------------------------------------------------------------------

    async def receive_large(self, payload: Payload) -> None:
        """Take a large message that has arrived: a complete payload that this socket's user sent. To be overridden.

        Never runs while another handler of this consumer does. The payload is the site's from now on: it stays until
        the site ends it with `payload.discard()` or attaches it.
        """
        raise NotImplementedError("a consumer with LargeMessageMixin defines receive_large(payload)")

    async def large_refused(self, code: str) -> None:
        """Answer a large message that was not taken; by default the socket is closed.

        `code`: a reject or abort code of the protocol. `forbidden` is a pointer to what is not there, not complete or
        somebody else's, which all look alike; `busy`, `quota` and `draining` may pass.
        """
        await self._large_close(_CLOSES.get(code, 1013))

    async def send_large(self, content: Any) -> None:
        """Send a message: as it is where it is small, else as a pointer to a payload for this socket's user.

        Bytes go as a binary message. All else goes through the consumer's `encode_json`; where it has none, a `str`
        goes as it is. Returns once it is stored and the pointer sent. Raises `UsageError` where a large message has
        nobody to go to, `StorageUnavailable`.
        """
        data, content_type = await self._large_encoded(content)
        if len(data) <= self._large_limit():
            await self._large_send(data, binary=content_type == BINARY_TYPE)
            return
        user = self._large_user()
        if user is None:
            raise UsageError("a large message needs a logged-in user in scope['user'] to be addressed to")
        payload = await api.adeliver(data, to=user, name="", content_type=content_type, expires=self.large_expires)
        await self.send_pointer(payload)

    async def send_pointer(self, payload: Payload) -> None:
        """Send the pointer to a payload that is delivered to this socket's user: one `deliver()` for many sockets."""
        pointer = {
            "type": POINTER,
            "payload": str(payload.pk),
            "size": payload.size,
            "content_type": payload.content_type,
        }
        if self.large_links:
            pointer["url"] = payload.url()
        await self._large_send(json.dumps(pointer).encode(), binary=False)

    # -- life --------------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve the socket; it is closed with 1001 when the web process drains."""
        shared = web_process.current()
        message_limits.look_at(receive)
        message_limits.limit_messages(scope, conf.current().plain_max_message + message_limits.SLACK_BYTES)
        self._large_arrivals = LargeMessageReceiver(shared, receive)
        leaver = _Leaver(self, self._large_arrivals)
        shared.sockets.add(leaver)
        try:
            await super().__call__(scope, self._large_arrivals.receive, send)  # type: ignore[misc]
        except asyncio.CancelledError:
            if not leaver.abandoned:
                raise
        finally:
            try:
                await asyncio.shield(self._large_arrivals.end())
            finally:
                shared.sockets.discard(leaver)

    async def websocket_connect(self, message: dict[str, Any]) -> None:
        if web_process.current().draining:
            await self.accept()  # type: ignore[attr-defined]
            await self._large_close(1001)
        else:
            await super().websocket_connect(message)  # type: ignore[misc]

    # -- what comes --------------------------------------------------------------------------------------------------

    async def websocket_receive(self, message: dict[str, Any]) -> None:
        """Hand on what is small; take in what is large, or points to something large."""
        data, text = message.get("bytes"), message.get("text") or ""
        size = _bytes_in(text) if data is None else len(data)
        if size > conf.current().plain_max_message:
            await self._large_close(1009)
        elif size > self._large_limit():
            await self._large_take(text.encode() if data is None else data, binary=data is not None)
        elif data is None and POINTER in text and (pointer := _pointer(text)) is not None:
            await self._large_follow(pointer)
        else:
            await super().websocket_receive(message)  # type: ignore[misc]

    async def _large_take(self, data: bytes, *, binary: bool) -> None:
        """Have a large message stored beside the socket."""
        user = self._large_user()
        if user is None:
            await self._large_close(1009)
        else:
            await self._large_arrivals.put(user, data, BINARY_TYPE if binary else self._large_text_type())

    async def delivery_large_arrived(self, message: dict[str, Any]) -> None:
        """A large message is stored, or was refused."""
        try:
            if message["payload"] is None:
                logger.warning("large message refused: %s", message["code"])
                await self.large_refused(message["code"])
            else:
                await self.receive_large(await web_process.current().db(Payload.objects.get, pk=message["payload"]))
        finally:
            self._large_arrivals.handled()

    async def _large_follow(self, pointer: dict[str, Any]) -> None:
        """Take a payload that its sender has uploaded beside this socket."""
        user = self._large_user()
        key = _key_of(pointer)
        found = None if user is None or key is None else await web_process.current().db(_owned, key, user.pk)
        if found is None:  # an unknown one, an incomplete one and somebody else's must look alike
            await self.large_refused("forbidden")
        else:
            await self.receive_large(found)

    # -- what goes ---------------------------------------------------------------------------------------------------

    async def _large_encoded(self, content: Any) -> tuple[bytes, str]:
        """Return (bytes, content type) of a message."""
        if isinstance(content, bytes | bytearray | memoryview):
            return bytes(content), BINARY_TYPE
        encode = getattr(self, "encode_json", None)
        if encode is not None:
            return (await encode(content)).encode(), JSON_TYPE
        return (content if isinstance(content, str) else json.dumps(content)).encode(), self._large_text_type()

    async def _large_send(self, data: bytes, *, binary: bool) -> None:
        if binary:
            await self.send(bytes_data=data)  # type: ignore[attr-defined]
        else:
            await self.send(text_data=data.decode())  # type: ignore[attr-defined]

    async def _large_close(self, code: int) -> None:
        await self.close(code, CLOSE_CODES[code].reason)  # type: ignore[attr-defined]

    # -- what is asked -----------------------------------------------------------------------------------------------

    def _large_limit(self) -> int:
        return conf.current().inline_limit if self.large_limit is None else self.large_limit

    def _large_text_type(self) -> str:
        return JSON_TYPE if hasattr(self, "encode_json") else TEXT_TYPE

    def _large_user(self) -> Any | None:
        user = self.scope.get("user")  # type: ignore[attr-defined]
        return user if user is not None and user.is_authenticated else None


class LargeMessageReceiver:
    """The large messages of one socket. One is stored at a time; who brings the next one waits for it."""

    def __init__(self, process: WebProcess, receive: Receive) -> None:
        self._process = process
        self._receive = receive
        self._reading: asyncio.Future[dict[str, Any]] | None = None  # what comes next from the socket
        self._arriving: asyncio.Future[dict[str, Any]] | None = None  # and what arrives next
        self._storing: asyncio.Task[None] | None = None
        self._arrived: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def receive(self) -> dict[str, Any]:
        """Return what comes next: a message of the socket, or that a large one has arrived. An ASGI `receive`."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._receive())
        if self._arriving is None:
            self._arriving = asyncio.ensure_future(self._arrived.get())
        await asyncio.wait({self._reading, self._arriving}, return_when=asyncio.FIRST_COMPLETED)
        if self._arriving.done():
            arriving, self._arriving = self._arriving, None
            return arriving.result()
        reading, self._reading = self._reading, None
        return reading.result()

    async def put(self, user: Any, data: bytes, content_type: str) -> None:
        """Begin to store a message of `user`; waits for the one before it: TCP slows the peer down."""
        if self._storing is not None:
            await asyncio.wait({self._storing})
        self._storing = asyncio.create_task(self._store(user, data, content_type), name="delivery large message")

    async def _store(self, user: Any, data: bytes, content_type: str) -> None:
        try:
            finished = await store_whole(self._process, user, data, content_type=content_type)
        except (Refused, TransferAborted) as refused:
            self._put(code=refused.code)
        except BufferUnavailable:
            self._put(code="busy")
        except Exception:
            logger.exception("large message not stored")
            self._put(code=INTERNAL)
        else:
            self._put(payload=finished.payload)

    def _put(self, *, payload: UUID | None = None, code: str = "") -> None:
        self._arrived.put_nowait({"type": ARRIVED, "payload": payload, "code": code})

    def handled(self) -> None:
        """Note that the consumer is through with one that arrived."""
        self._arrived.task_done()

    async def settle(self) -> None:
        """Return once nothing is being stored and everything that arrived is handled."""
        if self._storing is not None:
            await asyncio.wait({self._storing})
        await self._arrived.join()

    async def end(self) -> None:
        """Let go: the socket is gone. What nobody was handed is not kept."""
        for task in (self._reading, self._storing, self._arriving):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        left = [self._arrived.get_nowait() for _ in range(self._arrived.qsize())]
        if self._arriving is not None and not self._arriving.cancelled():
            left.append(self._arriving.result())
        payloads = [message["payload"] for message in left if message["payload"] is not None]
        cancelling = (self._process.db(outcomes.cancel_payload, payload, by="") for payload in payloads)
        for payload, outcome in zip(payloads, await asyncio.gather(*cancelling, return_exceptions=True), strict=True):
            if isinstance(outcome, Exception):
                logger.error("payload %s is left to expire", payload, exc_info=outcome)


class _Leaver:
    """Closes a site's own socket when the web process drains."""

    login: Login | None = None  # who may stay on a site's own socket is the site's to say

    def __init__(self, consumer: Any, arrivals: LargeMessageReceiver) -> None:
        self.abandoned = False
        self._consumer = consumer
        self._arrivals = arrivals
        self._task = asyncio.current_task()

    def revoke(self, reason: str) -> None:
        """Never asked for: there is no login of ours."""

    async def leave(self, reason: str) -> None:
        """Close once the large message in hand is with the site; a peer that does not read is given up after 2 s."""
        try:
            async with asyncio.timeout(conf.current().drain_grace / 2):
                await self._arrivals.settle()
        except TimeoutError:
            logger.warning("a large message is cut off: its storing took too long")
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._consumer.close(1001, CLOSE_CODES[1001].reason)
        except TimeoutError:
            self.abandoned = True
            if self._task is not None:
                self._task.cancel()
        except (OSError, RuntimeError):
            return  # it was closing already


def _bytes_in(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _pointer(text: str) -> dict[str, Any] | None:
    """Return the message if it is a pointer."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) and message.get("type") == POINTER else None


def _key_of(pointer: dict[str, Any]) -> UUID | None:
    try:
        return UUID(str(pointer.get("payload")))
    except ValueError:
        return None


def _owned(payload_id: UUID, user: Any) -> Payload | None:
    return Payload.objects.filter(pk=payload_id, owner=user, state=PayloadState.COMPLETE).first()
