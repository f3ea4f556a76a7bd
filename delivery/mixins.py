"""Large messages on a site's own sockets (PROTOCOL section 8): the socket carries a pointer, the bytes go beside it.

class Chat(LargeMessageMixin, AsyncJsonWebsocketConsumer):
    async def receive_json(self, content, **kwargs):
        await self.send_large(content)

    async def receive_large(self, payload):
        ...
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any
from uuid import UUID

from delivery import conf, site
from delivery.errors import BufferUnavailable, Refused, TransferAborted, UsageError
from delivery.models import Payload, PayloadState
from delivery.protocol.codes import CLOSE_CODES
from delivery.serving import process, whole
from delivery.serving.login import Login

logger = logging.getLogger(__name__)

POINTER = "delivery.large"
JSON_TYPE = "application/json"
BINARY_TYPE = "application/octet-stream"


def pointer_to(payload: Payload) -> dict[str, Any]:
    """Return the message that stands for a payload on a site's own socket."""
    return {
        "type": POINTER,
        "payload": str(payload.pk),
        "size": payload.size,
        "content_type": payload.content_type,
    }


class LargeMessageMixin:
    """For an `AsyncWebsocketConsumer` or `AsyncJsonWebsocketConsumer`, named before it among the bases.

    Needs a logged-in user in `scope["user"]` (Channels' `AuthMiddlewareStack`): payloads belong to somebody.
    `large_limit` (bytes) is the largest message that the socket carries itself; None: `DELIVERY["INLINE_LIMIT"]`.
    """

    large_limit: int | None = None

    async def receive_large(self, payload: Payload) -> None:
        """Take a large message that has arrived: a complete payload, owned by this socket's user. To be overridden."""
        raise NotImplementedError("a consumer with LargeMessageMixin defines receive_large(payload)")

    async def send_large(self, content: Any) -> None:
        """Send JSON content (or bytes): as it is where it is small, else as a pointer to a payload for this user.

        Raises `UsageError` where nobody is logged in and the content is large, `StorageUnavailable`.
        """
        binary = isinstance(content, bytes | bytearray | memoryview)
        data = bytes(content) if binary else json.dumps(content).encode()
        if len(data) <= self._large_limit():
            await self.send(bytes_data=data) if binary else await self.send(text_data=data.decode())  # type: ignore[attr-defined]
            return
        user = self._large_user()
        if user is None:
            raise UsageError("a large message needs a logged-in user in scope['user'] to be addressed to")
        payload = await site.adeliver(data, to=user, name="", content_type=BINARY_TYPE if binary else JSON_TYPE)
        await self.send(text_data=json.dumps(pointer_to(payload)))  # type: ignore[attr-defined]

    # -- what comes --------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve the socket; it is closed with 1001 when the web process drains."""
        shared = process.current()
        leaver = _Leaver(self)
        shared.sessions.add(leaver)
        try:
            await super().__call__(scope, receive, send)  # type: ignore[misc]
        finally:
            shared.sessions.discard(leaver)

    async def websocket_receive(self, message: dict[str, Any]) -> None:
        """Hand on what is small; take in what is large, or points to something large."""
        data = message.get("bytes")
        text = message.get("text")
        size = len(data) if data is not None else _bytes_in(text or "")
        if size > conf.current().plain_max_message:
            await self.close(1009, CLOSE_CODES[1009].reason)  # type: ignore[attr-defined]
        elif size > self._large_limit():
            await self._take_in(data if data is not None else (text or "").encode(), binary=data is not None)
        elif text is not None and f'"{POINTER}"' in text and (payload_id := _pointed_at(text)) is not None:
            await self._follow(payload_id)
        else:
            await super().websocket_receive(message)  # type: ignore[misc]

    async def _take_in(self, data: bytes, *, binary: bool) -> None:
        user = self._large_user()
        if user is None:
            await self.close(1009, CLOSE_CODES[1009].reason)  # type: ignore[attr-defined]
            return
        shared = process.current()
        try:
            finished = await whole.store(shared, user, data, content_type=BINARY_TYPE if binary else JSON_TYPE)
        except (Refused, TransferAborted, BufferUnavailable) as error:
            logger.warning("large message not stored: %s", error)
            await self.close(1013, CLOSE_CODES[1013].reason)  # type: ignore[attr-defined]
            return
        await self.receive_large(await shared.db(Payload.objects.get, pk=finished.payload))

    async def _follow(self, payload_id: UUID) -> None:
        """Take a payload that its sender has uploaded beside this socket."""
        user = self._large_user()
        payload = None if user is None else await process.current().db(_owned, payload_id, user.pk)
        if payload is None:  # an unknown one and somebody else's must look alike
            await self.close(1008, CLOSE_CODES[1008].reason)  # type: ignore[attr-defined]
            return
        await self.receive_large(payload)

    def _large_limit(self) -> int:
        return conf.current().inline_limit if self.large_limit is None else self.large_limit

    def _large_user(self) -> Any | None:
        user = self.scope.get("user")  # type: ignore[attr-defined]
        return user if user is not None and user.is_authenticated else None


class _Leaver:
    """Closes a site's own socket when the web process drains."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer

    login: Login | None = None  # who may stay on a site's own socket is the site's to say

    def revoke(self) -> None:
        """Never asked for: there is no login of ours."""

    async def leave(self, reason: str) -> None:
        try:
            await self._consumer.close(1001, CLOSE_CODES[1001].reason)
        except (OSError, RuntimeError):
            await asyncio.sleep(0)  # it was closing already


def _bytes_in(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _pointed_at(text: str) -> UUID | None:
    """Return the payload's id if `text` is a pointer."""
    try:
        message = json.loads(text)
        if isinstance(message, dict) and message.get("type") == POINTER:
            return UUID(str(message.get("payload")))
    except ValueError:
        return None
    return None


def _owned(payload_id: UUID, user: Any) -> Payload | None:
    return Payload.objects.filter(pk=payload_id, owner=user, state=PayloadState.COMPLETE).first()
