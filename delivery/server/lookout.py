"""What has arrived although nobody was told: control events may be lost (DESIGN, "Wake-ups").

One question to the database for all connections of the process, every few seconds; who stays connected for days is
offered what waits for them within that time, whatever the channel layer dropped.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from django.utils import timezone

from delivery.transfers import deliveries

if TYPE_CHECKING:
    from delivery.server.connection import Session
    from delivery.server.web_process import Process

LOOK_SECONDS = 10.0
#: Looked at again each time: rows are dated before they are committed, by the clocks of several machines.
OVERLAP = datetime.timedelta(seconds=60)


class Lookout:
    """The connections that receive, and for which addresses. Belongs to one event loop."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._sessions: WeakKeyDictionary[Session, Sequence[str]] = WeakKeyDictionary()
        self._by_address: dict[str, WeakKeyDictionary[Session, None]] = {}  # as they came
        self._since = timezone.now() - OVERLAP

    def join(self, session: Session, addresses: Sequence[str]) -> None:
        """Look out for what arrives for `addresses`, for as long as the session lives."""
        self._sessions[session] = addresses
        for address in addresses:
            self._by_address.setdefault(address, WeakKeyDictionary())[session] = None

    def leave(self, session: Session) -> None:
        """Look out for it no more."""
        for address in self._sessions.pop(session, ()):
            there = self._by_address.get(address)
            if there is not None:
                there.pop(session, None)
                if not there:
                    del self._by_address[address]

    def sessions(self) -> list[Session]:
        """Return those that look out for anything."""
        return list(self._sessions)

    def at(self, address: str) -> list[Session]:
        """Return the sessions of this process that look out for `address`."""
        return list(self._by_address.get(address, ()))

    async def look(self) -> None:
        """Have each session that something new is for look for it. Raises what the database raises."""
        sessions = [one for one in self._sessions.items() if one[0] in self._process.sessions]
        now = timezone.now()
        if sessions:
            groups = {address for _, addresses in sessions for address in addresses}
            found = await self._process.db(deliveries.arrived, groups, self._since)
            for session, addresses in sessions:
                for address in found.intersection(addresses):
                    session.arrived(address, None)
        self._since = now - OVERLAP
