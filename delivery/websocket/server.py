"""The ASGI server of one web process: uvicorn, set up for large messages, that drains its sockets before it ends.

uvicorn itself closes WebSockets with 1012 on SIGTERM. Clients must get our last acks and 1001 before that (PROTOCOL
section 6). So there is a hook between closing the listeners and uvicorn's own shutdown.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.config import WS_PROTOCOLS

from delivery.websocket import internals
from delivery.websocket.body_limit import BodyBudget, BodyLimit

logger = logging.getLogger(__name__)

#: How long uvicorn waits, in seconds, for what `before_close` has left.
GRACEFUL_SHUTDOWN_SECONDS = 5
ANSWER_SECONDS = 2.0
PING_SECONDS = 20.0  # between WebSocket's own pings
PONG_SECONDS = 60.0  # without a pong and without any other byte: then the peer is gone
SANSIO = "websockets-sansio"  # the only one with backpressure both ways
NEW_OBJECTS = 5_000  # between two looks at the youngest; Python's own 700 are those of five connections
#: How long after a signal, in seconds beside `drain_seconds`, the process is ended whatever hangs in it.
LAST_SECONDS = GRACEFUL_SHUTDOWN_SECONDS + ANSWER_SECONDS + 1.0


@dataclass(frozen=True, kw_only=True)
class WebOptions:
    """Where to listen, and what to tell uvicorn.

    `message_limit`, in bytes, is the most that any socket takes; ours take less, by who is logged in. `body_limit`: of
    HTTP requests.
    """

    host: str
    port: int
    message_limit: int
    proxy_headers: bool
    forwarded_allow_ips: str | None = None
    body_limit: BodyLimit | None = None

    def config(self, application: Any) -> uvicorn.Config:
        http, ws = self._protocols()
        return uvicorn.Config(
            application,
            host=self.host,
            port=self.port,
            http=http,
            ws=ws,
            ws_max_size=self.message_limit,
            ws_per_message_deflate=False,
            ws_ping_interval=PING_SECONDS,
            ws_ping_timeout=PONG_SECONDS,
            loop="uvloop",
            lifespan="off",
            timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
            proxy_headers=self.proxy_headers,
            forwarded_allow_ips=self.forwarded_allow_ips,
            access_log=False,
            log_config=None,  # Django's LOGGING stands
        )

    def _protocols(self) -> tuple[Any, Any]:
        """Return what speaks HTTP and WebSocket: ours; uvicorn's own, with a warning, where ours don't fit what is installed."""
        if missing := internals.missing():
            logger.warning(
                "served by uvicorn's own protocols (%s). Lost: speed; the bounds on memory before a login, on the head and body "
                "of a request and on fragments; patience with slow links. Install versions of uvicorn and websockets that "
                "delivery was tested with",
                ", ".join(missing),
            )
            return "auto", SANSIO if SANSIO in WS_PROTOCOLS else "auto"
        from delivery.websocket import uvicorn as guarded  # it builds on those internals

        if guarded.CONNECTIONS.level == logging.NOTSET:  # else the site wants to read it
            guarded.CONNECTIONS.setLevel(logging.WARNING)  # one line for each connection, as one for each request
        limit = self.body_limit or BodyLimit()
        http = functools.partial(guarded.GuardedHttp, body_limit=limit, body_budget=BodyBudget(limit.budget))
        return http, guarded.GuardedWebSocket


class Server(uvicorn.Server):
    """A uvicorn server that awaits `before_close` after it has stopped listening and before it closes sockets.

    `before_close` runs on the server's loop, for at most `drain_seconds`; a second Ctrl-C ends it early. Whatever it
    raises is logged, and the shutdown goes on. `must_end`: end the whole process where it outlives its grace: a thread
    that waits for a Redis which does not answer would otherwise be waited for.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        before_close: Callable[[], Awaitable[None]] | None = None,
        drain_seconds: float = 10.0,
        must_end: bool = False,
    ) -> None:
        super().__init__(config)
        self._before_close = before_close
        self._drain_seconds = drain_seconds
        self._must_end = must_end

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until SIGINT or SIGTERM, then return.

        uvicorn puts the earlier handlers back when it has shut down and raises the signal again, which would end this
        process as killed. With its own handler as the earlier one, it returns; and a signal that comes while the
        loop is not yet running is not lost.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)
        _collect_less()
        super().run(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._must_end:
            _end_after(self._drain_seconds + LAST_SECONDS)
        for server in self.servers:
            server.close()  # super() does so again, which changes nothing
        if self._before_close is not None:
            await self._drain(self._before_close)
            await self._until_answered()
        await super().shutdown(sockets)

    async def _drain(self, before_close: Callable[[], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._drain_seconds
        draining = asyncio.ensure_future(before_close())
        while not (draining.done() or self.force_exit or loop.time() >= deadline):
            # uvicorn's handler only sets a flag, so look at it as often as uvicorn does.
            await asyncio.wait({draining}, timeout=0.1)
        if not draining.done():
            logger.warning("sockets are still open after %.1f s; closing them anyway", self._drain_seconds)
            draining.cancel()
        for outcome in await asyncio.gather(draining, return_exceptions=True):
            if isinstance(outcome, Exception):
                logger.error("closing the sockets failed", exc_info=outcome)

    async def _until_answered(self) -> None:
        """Wait, at most 2 s, until the peers have answered the close frames that were sent to them.

        uvicorn would close TCP at once. What a peer still sends would then be met with a reset, and take the close frame,
        not yet read, along: a sender would see 1006 instead of 1001.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ANSWER_SECONDS
        while loop.time() < deadline and not self.force_exit:
            if not any(getattr(one, "close_timer", None) for one in self.server_state.connections):
                return
            await asyncio.sleep(0.02)


def _collect_less() -> None:
    """Spare Python's collector of cycles what has been loaded, and have it look for cycles less often.

    Connections leave none behind, but a thousand new ones at once had it look through the whole site again and again: a
    third of what they cost.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, *gc.get_threshold()[1:])


def _end_after(seconds: float) -> None:
    def end() -> None:
        logger.error("still here %.0f s after the signal; ending anyway", seconds)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
