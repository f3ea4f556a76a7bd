"""Going away: what is on its way is stored, acked, and the socket closed with 1001 (PROTOCOL section 6).

For one connection whose worker drains, and for all of a web process that shuts down.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING

from delivery import conf
from delivery.protocol.codes import CLOSE_CODES, GOING_AWAY_CODES
from delivery.protocol.messages import GoingAway
from delivery.server.web_process import Process, existing

if TYPE_CHECKING:
    from delivery.server.connection import Session

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 0.5
MOVED_SECONDS = 5.0
LOOK_SECONDS = 0.02


def served_by(session: Session, worker: str) -> bool:
    """Return whether `worker` moved a transfer of this connection within the last 5 s."""
    since = time.monotonic() - MOVED_SECONDS
    if any(intake.worker == worker and intake.worker_at >= since for intake in session.intakes.values()):
        return True
    cache = session.process.cache
    return any(
        outflow.granted and cache.staged_by(outflow.waiting.payload, since) == worker
        for outflow in session.outflows.values()
    )


async def leave(session: Session, reason: str) -> None:
    """Take nothing more in, store and ack what is on its way, say `going_away`, close. Returns once that is queued.

    `reason`: of PROTOCOL section 6. Flushing takes at most 0.5 s; what is not stored by then is sent again.
    """
    if session.leaving or session.closing:
        return
    session.leaving = True
    for intake in session.intakes.values():
        intake.hurry()
    deadline = time.monotonic() + FLUSH_SECONDS
    while time.monotonic() < deadline and not all(intake.settled for intake in session.intakes.values()):
        await asyncio.sleep(LOOK_SECONDS)
    session.connection.queue_acks(time.monotonic())
    code = GOING_AWAY_CODES[reason]
    # Spread, so that all the clients do not come back in the same moment.
    retry_after = round(random.uniform(0.0, conf.current().drain_spread), 3)
    away = GoingAway(reason=reason, retry_after=retry_after)
    session.close(code, CLOSE_CODES[code].reason, going_away=away)


async def leave_all(process: Process) -> None:
    """Close every socket of the process with 1001, take no new one, and return once they are gone.

    The caller bounds it: a peer that does not read is given up after 2 s.
    """
    process.draining = True
    sessions = list(process.sessions)
    logger.info("going away: %d connections", len(sessions))
    await asyncio.gather(*(session.leave("server_draining") for session in sessions), return_exceptions=True)
    while process.sessions:
        await asyncio.sleep(LOOK_SECONDS)
    await process.stop()


async def drain_process() -> None:
    """Do what `leave_all` does for the running event loop's process, if any connection ever came."""
    found = existing()
    if found is not None:
        await leave_all(found)
