"""Plain mode: a client without the subprotocol sends whole payloads, one a message (PROTOCOL section 7)."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any
from urllib.parse import parse_qs

from delivery import conf
from delivery.auth import Login
from delivery.errors import BufferUnavailable, Refused, TransferAborted
from delivery.policy import Quota
from delivery.protocol.codes import CLOSE_CODES
from delivery.server import web_process, whole
from delivery.server.writer import ConnectionClosed, Socket
from delivery.transfers.uploads import FinishedUpload

logger = logging.getLogger(__name__)

TEXT = "text/plain; charset=utf-8"
BINARY = "application/octet-stream"
CLOSE_SECONDS = 2.0


def addresses_of(query: bytes) -> tuple[str, ...]:
    """Return the `to` parameters of a URL's query.

    An empty one counts: it names nobody and is refused. Left out, a script's unset variable would turn "for Bob" into
    "for the site".
    """
    return tuple(parse_qs(query.decode("latin-1"), keep_blank_values=True).get("to", ()))


class PlainSession:
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
        self.process.sessions.add(self)
        if self.process.connections.enter(self._user.pk) > self._quota.connections:
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
        if self in self.process.sessions:
            self.process.sessions.discard(self)
            self.process.connections.leave(self._user.pk)

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
            finished = await whole.store(self.process, self._user, data, content_type=content_type, to=self._to)
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
