"""Large messages on a site's own socket, which carries only a pointer to each (PROTOCOL section 8).

The socket stays the program's; the bytes go over a separate client. The counterpart of `LargeMessageMixin`.
"""

from __future__ import annotations

import asyncio
import json
from types import TracebackType
from typing import Any, Self

from delivery.client.client import Client
from delivery.client.download import READ_LIMIT_BYTES, Incoming
from delivery.errors import UsageError
from delivery.protocol.limits import MAX_UNANSWERED_OFFERS

POINTER = "delivery.large"
INLINE_BYTES = 65_536
JSON_TYPE = "application/json"
TEXT_TYPE = "text/plain; charset=utf-8"
BINARY_TYPE = "application/octet-stream"


class LargeMessages:
    """Packs and unpacks the messages of a site's own socket. For `async with`, inside that of its client.

    `client`: one for these messages alone, connected with `receive=True`: what nobody has a pointer to is declined
    when it stands in the way. `limit`: the largest message in bytes that the socket carries itself, the site's
    `large_limit`. `max_size`: the largest to unpack, bytes.
    """

    def __init__(self, client: Client, *, limit: int = INLINE_BYTES, max_size: int = READ_LIMIT_BYTES) -> None:
        self._client = client
        self._limit = limit
        self._max_size = max_size
        self._wanted: dict[str, asyncio.Future[Incoming]] = {}  # by payload: a pointer came, no offer yet
        self._held: dict[str, Incoming] = {}  # by payload: an offer came, no pointer yet; oldest first
        self._task: asyncio.Task[None] | None = None
        self._error: Exception | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._collect())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._fail(UsageError("the large messages were closed"))

    async def pack(self, content: Any) -> str | bytes:
        """Return what to send on the socket: the message itself, or a pointer once a large one is stored.

        `content`: bytes, `str` (text as it is), or anything that goes into JSON. Raises what `client.send` raises.
        """
        message, content_type = _encoded(content)
        data = message if isinstance(message, bytes) else message.encode()
        if len(data) <= self._limit:
            return message
        receipt = await self._client.send(data, name="", content_type=content_type)
        pointer = {
            "type": POINTER,
            "payload": receipt.payload,
            "size": receipt.size,
            "content_type": content_type,
        }
        return json.dumps(pointer)

    async def unpack(self, message: str | bytes) -> str | bytes:
        """Return the message that `message`, as it came on the socket, stands for: itself, or the large one.

        Waits for the bytes for as long as it takes: bound it with `asyncio.timeout`, which leaves them with the server.
        Raises `UsageError` where it is larger than `max_size`, `TransferAborted` where it has ended, `IntegrityError`,
        `ConnectionStopped`.
        """
        pointer = _pointer(message)
        if pointer is None:
            return message
        incoming = await self._incoming(str(pointer.get("payload")))
        data = await incoming.read(self._max_size)
        return data if incoming.content_type == BINARY_TYPE else data.decode()

    async def _incoming(self, payload: str) -> Incoming:
        """Return the delivery of a payload as soon as it is offered."""
        if self._task is None:
            raise UsageError("large messages are for `async with`")
        if self._error is not None:
            raise self._error
        if (incoming := self._held.pop(payload, None)) is not None:
            return incoming
        wanted = self._wanted.setdefault(payload, asyncio.get_running_loop().create_future())
        self._make_room()
        try:
            return await asyncio.shield(wanted)
        except asyncio.CancelledError:
            if wanted.done() and not wanted.exception():
                self._held[payload] = wanted.result()  # for who asks next
            raise
        finally:
            self._wanted.pop(payload, None)

    async def _collect(self) -> None:
        """Sort what is offered: to whoever waits for it, else kept until its pointer comes."""
        try:
            async for incoming in self._client.deliveries():
                wanted = self._wanted.pop(incoming.payload, None)
                if wanted is not None and not wanted.done():
                    wanted.set_result(incoming)
                else:
                    self._held[incoming.payload] = incoming
                    self._make_room()
        except Exception as error:  # noqa: BLE001 - of the program's observer, too: whoever waits hears of it
            self._fail(error)
        else:
            self._fail(UsageError("the client was closed"))

    def _make_room(self) -> None:
        """Decline the oldest of what nobody has asked for, where the server offers nothing more before an answer."""
        for payload, incoming in list(self._held.items()):
            if incoming.done:  # expired, or cancelled
                del self._held[payload]
        while self._wanted and len(self._held) >= MAX_UNANSWERED_OFFERS:
            self._held.pop(next(iter(self._held))).decline()

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        for wanted in self._wanted.values():
            if not wanted.done():
                wanted.set_exception(error)
        self._held.clear()


def _encoded(content: Any) -> tuple[str | bytes, str]:
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content), BINARY_TYPE
    if isinstance(content, str):
        return content, TEXT_TYPE
    return json.dumps(content), JSON_TYPE


def _pointer(message: str | bytes) -> dict[str, Any] | None:
    """Return the message if it is a pointer."""
    if isinstance(message, bytes) or POINTER not in message:
        return None
    try:
        found = json.loads(message)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.get("type") == POINTER else None
