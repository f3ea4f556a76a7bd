"""Plain mode: a client without the subprotocol sends whole payloads, one a message (PROTOCOL section 7)."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any
from urllib.parse import parse_qs

from delivery import conf
from delivery.errors import BufferUnavailable, Refused, TransferAborted
from delivery.protocol.codes import CLOSE_CODES
from delivery.serving import process, whole
from delivery.serving.login import Login
from delivery.serving.writer import ConnectionClosed, Socket

logger = logging.getLogger(__name__)

TEXT = "text/plain; charset=utf-8"
BINARY = "application/octet-stream"


def addresses_of(query: bytes) -> tuple[str, ...]:
    """Return the `to` parameters of a URL's query."""
    return tuple(parse_qs(query.decode("latin-1")).get("to", ()))


class PlainSession:
    """One plain connection: one message is stored after the other. Its consumer calls `start`, `take` and `end`."""

    def __init__(self, socket: Socket, login: Login, to: tuple[str, ...]) -> None:
        self.process = process.current()
        self._socket = socket
        self.login: Login | None = login
        self._user = login.user
        self._to = to
        self._storing: asyncio.Task[None] | None = None
        self._closing = False
        self._closed: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.process.sessions.add(self)

    async def end(self) -> None:
        """Let go: the socket is gone."""
        if self._storing is not None:
            self._storing.cancel()
            await asyncio.gather(self._storing, return_exceptions=True)
        self.process.sessions.discard(self)

    async def take(self, message: str | bytes) -> None:
        """Take one payload. Waits for the one before it: TCP slows the peer down."""
        data = message.encode() if isinstance(message, str) else message
        if self._closing:
            return
        if len(data) > conf.current().plain_max_message:
            await self._close(1009)
            return
        if self._storing is not None:
            await self._storing
        work = self._store(data, TEXT if isinstance(message, str) else BINARY)
        self._storing = asyncio.create_task(work, name="delivery plain")

    async def _store(self, data: bytes, content_type: str) -> None:
        try:
            finished = await whole.store(self.process, self._user, data, content_type=content_type, to=self._to)
            answer: dict[str, Any] = {
                "type": "stored",
                "payload": str(finished.payload),
                "size": finished.size,
                "sha256": finished.sha256,
            }
        except (Refused, TransferAborted) as refused:
            answer = {"type": "failed", "code": refused.code, "message": refused.message}
        except BufferUnavailable as error:
            answer = {"type": "failed", "code": "busy", "message": str(error)}
        except Exception:
            logger.exception("plain payload not stored")
            await self._close(1011)
            return
        await self._say(answer)

    async def _say(self, answer: dict[str, Any]) -> None:
        try:
            await self._socket.send_text(json.dumps(answer, separators=(",", ":")))
        except ConnectionClosed:
            return  # it is stored all the same

    def revoke(self) -> None:
        """The login no longer holds: close, and take nothing more."""
        if self._storing is not None:
            self._storing.cancel()
        self._closing = True
        self._closed = asyncio.create_task(self._close(4401), name="delivery plain close")

    async def leave(self, reason: str) -> None:
        """Close with 1001 once the message in hand is answered; `reason` has no place in plain mode."""
        if self._storing is not None:
            await asyncio.wait({self._storing}, timeout=conf.current().drain_grace / 2)
        await self._close(1001)

    async def _close(self, code: int) -> None:
        self._closing = True
        try:
            await self._socket.close(code, CLOSE_CODES[code].reason)
        except ConnectionClosed:
            return
