"""The Channels consumer: the ASGI end of a connection. It handles handshakes, frames and closes; `connection` does the rest."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Any
from uuid import UUID

from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer

from delivery import auth, conf, notify
from delivery.auth import Login, Refusal, Request
from delivery.server import message_limits, plain, web_process
from delivery.server.connection import ServerConnection
from delivery.server.plain import PlainConnection
from delivery.server.ports import ConnectionClosed
from delivery.websocket import handshakes
from delivery.websocket.extensions import INCOMPLETE, PIECES, STRAIGHT

logger = logging.getLogger(__name__)

SUBPROTOCOL = "delivery.v1"
FAIR_MESSAGES = 8  # taken in a row, until others have their turn


class DeliveryConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]
    """Serves delivery.v1 at one URL. Needs no middleware: Origin, session and token are checked here."""

    connection: ServerConnection | None = None
    plain: PlainConnection | None = None
    channel_name = ""
    _close_code: int | None = None
    _task: asyncio.Task[Any] | None = None
    _abandoned = False
    _write: Callable[[tuple[bytes | bytearray | memoryview, ...]], bool] | None = None  # what a server does at once
    _gives_straight = False
    _incomplete_at: Callable[[], float] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection, and clean up whatever ends it.

        `disconnect` is not called on cancellation or when a handler or the channel layer raises (channels#1466), hence
        the `finally`.
        """
        self._task = asyncio.current_task()
        message_limits.look_at(receive)
        try:
            await self._serve(scope, receive, send)
        except asyncio.CancelledError:
            if not self._abandoned:
                raise
        finally:
            await asyncio.shield(self._clean_up())

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        """Do what Channels' `__call__` does: that one makes a task and two waits of each message."""
        self.scope, self.base_send = scope, send
        extensions = scope.get("extensions") or {}
        self._write = extensions[PIECES]["write"] if PIECES in extensions else None
        self._gives_straight = STRAIGHT in extensions
        self._incomplete_at = extensions[INCOMPLETE]["at"] if INCOMPLETE in extensions else None
        self.limit_messages(message_limits.FIRST_BYTES)
        try:
            self.channel_name = await web_process.current().control.open(self.dispatch)
        except Exception as error:  # noqa: BLE001 - whatever the site's channel layer raises while its Redis is away
            await handshakes.refuse_for_now(scope, send, error)
            return
        try:
            for number in itertools.count(1):
                await self.dispatch(await receive())
                if number % FAIR_MESSAGES == 0:  # a queue that is not empty makes nobody wait
                    await asyncio.sleep(0)
        except StopConsumer:
            pass

    async def _clean_up(self) -> None:
        web_process.current().control.close(self.channel_name)  # first: nothing changes what is let go of meanwhile
        try:
            if self.connection is not None:
                await self.connection.end(self._close_code)
        finally:
            if self.plain is not None:
                await self.plain.end()
        self.connection = self.plain = self._write = self._incomplete_at = None  # they hold each other

    async def dispatch(self, message: dict[str, Any]) -> None:
        """Hand on a message. Skips Channels' housekeeping for database connections: we use none on this thread."""
        handler = getattr(self, message["type"].replace(".", "_"), None)
        if handler is None:
            logger.warning("unknown event %s", message["type"])  # from another version, in a rolling deploy
        elif handler.__name__.startswith("delivery_"):
            await self._control(handler, message)
        else:
            await handler(message)

    async def _control(self, handler: Any, message: dict[str, Any]) -> None:
        """Hand on a control event. One whose members are other than ours may not end the connection."""
        try:
            await handler(message)
        except (LookupError, ValueError, TypeError) as error:
            logger.warning("event %s not understood: %r", message["type"], error)

    # -- handshake and close -----------------------------------------------------------------------------------------

    async def websocket_connect(self, message: dict[str, Any]) -> None:
        request = Request.of(self.scope)
        offered = self.scope.get("subprotocols", [])
        if not auth.origin_allowed(self.scope) or (offered and SUBPROTOCOL not in offered):
            await self.close()  # before accepting: HTTP 403
            return
        if web_process.current().draining:  # the connection was there before its listener was closed
            await self.accept(SUBPROTOCOL if offered else None)
            await self.close(1001, "going away")
            return
        found = await web_process.current().questions.login_of(request)
        if isinstance(found, Login) and not offered:
            self.limit_messages(conf.current().plain_max_message + message_limits.SLACK_BYTES)
        await self.accept(SUBPROTOCOL if offered else None)
        if isinstance(found, Refusal) and (found is Refusal.WRONG or not offered):
            # Browsers cannot see an HTTP status, hence a close code (PROTOCOL section 1).
            await self.close(4401, found.value)
        elif web_process.current().draining:
            await self.close(1001, "going away")
        elif offered or isinstance(found, Refusal):
            await self._begin(found)
        else:
            self.plain = PlainConnection(self, found, plain.addresses_of(self.scope.get("query_string", b"")))
            await self.plain.start()

    async def _begin(self, found: Login | Refusal) -> None:
        self.connection = ServerConnection(self, found)
        self.connection.start()
        if self._gives_straight:
            await self._send({"type": STRAIGHT, "take": self.connection.take, "take_text": self.connection.take_text})
        await self.join(notify.group_of(notify.WORKERS))

    async def websocket_receive(self, message: dict[str, Any]) -> None:
        data = message.get("bytes")
        if self.connection is not None:
            if not (self.connection.take_text(message["text"]) if data is None else self.connection.take(data)):
                await self.connection.pace()
        elif self.plain is not None:
            await self.plain.take(message["text"] if data is None else data)

    async def delivery_pace(self, message: dict[str, Any]) -> None:
        """More came straight to the connection than may be in memory alone: nothing is read meanwhile."""
        if self.connection is not None:
            await self.connection.pace()

    async def websocket_disconnect(self, message: dict[str, Any]) -> None:
        self._close_code = message.get("code")
        raise StopConsumer

    # -- what a connection needs ----------------------------------------------------------------------------------------

    async def send_text(self, text: str) -> None:
        await self._send({"type": "websocket.send", "text": text})

    def send_now(self, *pieces: bytes | bytearray | memoryview) -> bool:
        return self._write is not None and self._write(pieces)

    async def send_bytes(self, *pieces: bytes | bytearray | memoryview) -> None:
        if self._write is not None:  # our own server sends them from where they lie
            await self._send({"type": PIECES, "pieces": pieces})
        else:
            await self._send({"type": "websocket.send", "bytes": b"".join(pieces)})

    async def close(self, code: int | None = None, reason: str | None = None) -> None:
        await self._send({"type": "websocket.close", "code": code or 1000, "reason": reason or ""})

    async def _send(self, message: dict[str, Any]) -> None:
        try:
            await self.base_send(message)
        except (OSError, RuntimeError) as error:  # uvicorn: OSError after loss, RuntimeError after a close
            raise ConnectionClosed from error

    def limit_messages(self, size: int) -> None:
        message_limits.limit_messages(self.scope, size)

    def incomplete_at(self) -> float:
        return 0.0 if self._incomplete_at is None else self._incomplete_at()

    def abandon(self) -> None:
        """Give the connection up, whether or not its peer reads."""
        self._abandoned = True
        if self._task is not None:
            self._task.cancel()

    async def join(self, group: str) -> None:
        await web_process.current().control.join(self.channel_name, group)

    # -- control events ----------------------------------------------------------------------------------------------

    async def delivery_waiting(self, event: dict[str, Any]) -> None:
        if self.connection is not None:
            web_process.current().presence.on_event(self.connection, event)

    async def delivery_worker_draining(self, event: dict[str, Any]) -> None:
        if self.connection is not None:
            self.connection.worker_draining(event["worker"])

    async def delivery_worker_ready(self, event: dict[str, Any]) -> None:
        if self.connection is not None:
            self.connection.worker_ready(str(event.get("worker", "")))

    async def delivery_taken_over(self, event: dict[str, Any]) -> None:
        if self.connection is not None:
            self.connection.taken_over(UUID(event["transfer"]), event["lease"])

    async def delivery_ended(self, event: dict[str, Any]) -> None:
        if self.connection is not None:
            self.connection.ended(UUID(event["transfer"]), event["code"])
