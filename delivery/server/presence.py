"""Telling recipients of what small uploads brought: at once who is connected here, others through the channel layer.

A recipient in this process waits neither for Redis nor for a turn of its subscriber. Other processes get one event for
all that came for an address since the last one, which names this process: here it was handed over already. While there
are no other processes (`neighbours`), there are no events either.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from delivery import notify
from delivery.protocol.limits import MAX_UNANSWERED_OFFERS
from delivery.transfers.deliveries import Waiting
from delivery.transfers.small import Arrival

if TYPE_CHECKING:
    from delivery.server.connection import Session
    from delivery.server.web_process import Process

logger = logging.getLogger(__name__)

RIDE_BYTES = 16 * 1024  # up to here the bytes ride on the event
MOST_RIDING = MAX_UNANSWERED_OFFERS  # no connection could be offered more at once
MOST_ADDRESSES = 10_000  # that wait to be told; beyond, they look for themselves within a few seconds
STOP_SECONDS = 1.0


class Teller:
    """The events of one web process that are still to go out. Belongs to its event loop."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._due: dict[str, list[Waiting | None]] = {}
        self._task: asyncio.Task[None] | None = None

    def tell(self, arrivals: Sequence[Arrival]) -> None:
        """Hand arrivals to the connections of this process, and have all others told soon."""
        for arrival in arrivals:
            for session in self._process.lookout.at(arrival.address):
                _hand(session, arrival)
            if not self._process.neighbours.alone(arrival.address):
                self._add(arrival)
        self._go()

    def tell_late(self, addresses: Iterable[str]) -> None:
        """Have others told that something arrived for `addresses`."""
        for address in addresses:
            self._add(Arrival(address))
        self._go()

    def _go(self) -> None:
        if self._due and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._run(), name="delivery arrivals")

    def _add(self, arrival: Arrival) -> None:
        if arrival.address not in self._due and len(self._due) >= MOST_ADDRESSES:
            return
        due = self._due.setdefault(arrival.address, [])
        rides = arrival.waiting is not None and arrival.waiting.size <= RIDE_BYTES and len(due) < MOST_RIDING
        if rides or None not in due:
            due.append(arrival.waiting if rides else None)

    async def _run(self) -> None:
        while self._due:
            address = next(iter(self._due))
            due = self._due.pop(address)
            offers = [waiting.packed() for waiting in due if waiting is not None]
            await notify.atell_group(
                address, "waiting", address=address, origin=self._process.id, offers=offers, more=None in due
            )

    async def stop(self) -> None:
        """Return once everything went out, or after a second: it may be lost."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=STOP_SECONDS)
            self._task.cancel()


def told(session: Session, event: dict[str, Any]) -> None:
    """Take an event of `Teller`, maybe of another version: its members may be other than ours."""
    if event.get("origin") == session.process.id:
        return
    address, offers = event["address"], event.get("offers", ())
    for packed in offers:
        session.arrived(address, Waiting.unpacked(packed))
    if not offers or event.get("more"):
        session.arrived(address, None)


def _hand(session: Session, arrival: Arrival) -> None:
    try:
        session.arrived(arrival.address, arrival.waiting)
    except Exception:  # whatever it is, it is this connection's alone: the others are told, and the sender is answered
        logger.exception("connection of %s fails", session.client)
        session.close(1011, "internal error")
