"""The addresses of the connected clients, and the notification of recipients about new deliveries.

A recipient in this process gets a small payload directly, without waiting for Redis. Other processes get one event per
address for all deliveries since the last event. The event names this process, which ignores it, since it has notified its own
recipients already. Polls for deliveries whose notification was lost: every few seconds, one query for all connections.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

from django.utils import timezone

from delivery import notify
from delivery.protocol.limits import MAX_UNANSWERED_OFFERS
from delivery.server.neighbours import Neighbours
from delivery.server.ports import DatabasePort, Recipient
from delivery.transfers import deliveries
from delivery.transfers.deliveries import Waiting
from delivery.transfers.inline import Arrival

logger = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
#: Looked at again each time: rows are dated before they are committed, by the clocks of several machines.
OVERLAP = datetime.timedelta(seconds=60)
RIDE_BYTES = 16 * 1024  # up to here the bytes ride on the event
MOST_RIDING = MAX_UNANSWERED_OFFERS  # no connection could be offered more at once
MOST_ADDRESSES = 10_000  # that wait to be told; beyond, they look for themselves within a few seconds
STOP_SECONDS = 1.0


class Presence:
    """The connections of one web process that receive. Belongs to its event loop.

    `web`: the id of this process. `neighbours`: says whether other processes are to be told; None tells them always.
    """

    def __init__(self, database: DatabasePort, web: str) -> None:
        self.neighbours: Neighbours | None = None
        self._database = database
        self._web = web
        self._addresses: WeakKeyDictionary[Recipient, Sequence[str]] = WeakKeyDictionary()
        self._by_address: dict[str, WeakKeyDictionary[Recipient, None]] = {}  # as they came
        self._since = timezone.now() - OVERLAP
        self._due: dict[str, list[Waiting | None]] = {}  # for other processes
        self._task: asyncio.Task[None] | None = None

    # -- who is here -------------------------------------------------------------------------------------------------

    def join(self, recipient: Recipient, addresses: Sequence[str]) -> None:
        """Tell `recipient` of what arrives for `addresses`, for as long as it lives."""
        self._addresses[recipient] = addresses
        for address in addresses:
            self._by_address.setdefault(address, WeakKeyDictionary())[recipient] = None

    def leave(self, recipient: Recipient) -> None:
        """Tell it no more."""
        for address in self._addresses.pop(recipient, ()):
            there = self._by_address.get(address)
            if there is not None:
                there.pop(recipient, None)
                if not there:
                    del self._by_address[address]

    async def announced(self) -> None:
        """Return once other processes tell this one of what arrives: what came before is in the rows."""
        if self.neighbours is not None:
            await self.neighbours.announced.wait()

    # -- what arrives ------------------------------------------------------------------------------------------------

    def tell(self, arrivals: Sequence[Arrival]) -> None:
        """Hand arrivals to the connections of this process, and have all others told soon."""
        for arrival in arrivals:
            for recipient in list(self._by_address.get(arrival.address, ())):
                _hand(recipient, arrival)
            if self.neighbours is None or not self.neighbours.alone(arrival.address):
                self._add(arrival)
        self._go()

    def tell_late(self, addresses: Iterable[str]) -> None:
        """Have others told that something arrived for `addresses`."""
        for address in addresses:
            self._add(Arrival(address))
        self._go()

    def on_event(self, recipient: Recipient, event: dict[str, Any]) -> None:
        """Take another process's event for `recipient`, maybe of another version: its members may be other than ours."""
        if event.get("origin") == self._web:
            return
        address, offers = event["address"], event.get("offers", ())
        for packed in offers:
            recipient.arrived(address, Waiting.unpacked(packed))
        if not offers or event.get("more"):
            recipient.arrived(address, None)

    async def look(self) -> None:
        """Have each connection that something new is for look for it. Raises what the database raises."""
        present = [one for one in self._addresses.items() if not one[0].over]
        now = timezone.now()
        if present:
            wanted = {address for _, addresses in present for address in addresses}
            found = await self._database.db(deliveries.arrived, wanted, self._since)
            for recipient, addresses in present:
                for address in found.intersection(addresses):
                    recipient.arrived(address, None)
        self._since = now - OVERLAP

    def staged(self, payload: UUID, worker: str) -> None:
        """Tell the recipients of a payload which worker has just staged a range of it."""
        for recipient in list(self._addresses):
            recipient.staged(payload, worker)

    async def check_groups(self) -> None:
        """End every delivery through a group that its user has left. Raises the first failure, once all were asked."""
        checks = (recipient.check_groups() for recipient in list(self._addresses) if recipient.receiving)
        for outcome in await asyncio.gather(*checks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    # -- other processes ---------------------------------------------------------------------------------------------

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
                address, "waiting", address=address, origin=self._web, offers=offers, more=None in due
            )

    async def stop(self) -> None:
        """Return once everything went out, or after a second: it may be lost."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=STOP_SECONDS)
            self._task.cancel()


def _hand(recipient: Recipient, arrival: Arrival) -> None:
    try:
        recipient.arrived(arrival.address, arrival.waiting)
    except Exception:  # whatever it is, it is this connection's alone: the others are told, and the sender is answered
        logger.exception("connection of %s fails", recipient.client)
        recipient.close(1011, "internal error")
