"""What time alone asks for on one connection: pings, silence, stalled deliveries, a close that nobody reads.

A timer and no task: a thousand idle connections cost a thousand entries in the loop's heap.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from delivery.protocol import events
from delivery.server import download_offers, upload_offers
from delivery.server.parts import Part

if TYPE_CHECKING:
    from delivery.server.connection import Session

logger = logging.getLogger(__name__)

BUSY_SECONDS = 1.0  # between looks while transfers live; an idle connection is looked at twice a heartbeat
SHORTEST_SECONDS = 0.05
CLOSE_SECONDS = 2.0


class Timer(Part):
    """Wakes one session. Belongs to its event loop."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._closing = False

    def start(self) -> None:
        """Look when it is due next; call it again where that may have become sooner."""
        if self._closing:
            return
        self.stop()
        connection = self._session.connection
        longest = connection.heartbeat / 2
        if self._session.intakes or self._session.outflows:
            longest = min(longest, BUSY_SECONDS)
        due = connection.wake_at() - time.monotonic()
        self._handle = self._loop.call_later(max(SHORTEST_SECONDS, min(longest, due)), self._look)

    def transfers_live(self) -> None:
        """Look often from now on: a transfer has begun."""
        if self._handle is None or self._handle.when() > self._loop.time() + BUSY_SECONDS:
            self.start()

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()

    def close(self) -> None:
        """Give the peer 2 s to read what waits to be sent, the close among it; then give the connection up."""
        if not self._closing:
            self._closing = True
            self.stop()
            self._handle = self._loop.call_later(CLOSE_SECONDS, self._session.socket.abandon)

    def _look(self) -> None:
        session = self._session
        try:
            self._look_once(time.monotonic())
            if any(intake.receiver.held for intake in session.intakes.values()):
                session.spawn(upload_offers.release_held(session), "release")
        except Exception:
            logger.exception("connection of %s fails", session.client)
            session.close(1011, "internal error")
        session.wake()
        self.start()

    def _look_once(self, now: float) -> None:
        session = self._session
        session.connection.heard(session.socket.incomplete_at())
        for event in session.connection.tick(now):
            if isinstance(event, events.HelloMissing):
                session.close(4408, "no hello in time")
            elif isinstance(event, events.PeerSilent):
                session.close(1011, "no answer")
        for outflow in list(session.outflows.values()):
            if outflow.sender.stalled(now):
                download_offers.drop(session, outflow, "stalled", final=False)
