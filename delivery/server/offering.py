"""What is offered to a connection, and when: what waits at hello, what arrives later, never more than may be open."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING
from uuid import UUID

from delivery.buffer.blocks import BLOCK_SIZE
from delivery.protocol.connection import MAX_UNANSWERED_OFFERS
from delivery.protocol.messages import DeliveryOffer
from delivery.server import download_offers, membership
from delivery.server.download import Outflow
from delivery.server.parts import Part
from delivery.transfers import deliveries
from delivery.transfers.deliveries import Waiting

if TYPE_CHECKING:
    from delivery.server.connection import Session

LOOK_SECONDS = 60.0
# What came while there was no room, kept for as long as it may be offered without another look at the rows.
MOST_KEPT = 64
KEPT_BYTES = 256 * 1024
KEPT_SECONDS = 1.0


class Offering(Part):
    """The deliveries of one connection. Belongs to its event loop."""

    def __init__(self, session: Session, *, chunk_size: int, most_live: int) -> None:
        super().__init__(session)
        self._chunk_size = min(chunk_size, BLOCK_SIZE)  # larger ones cost more: each is sent in several parts
        self._most_live = most_live
        self._set_aside: set[UUID] = set()  # not to be offered again on this connection
        self._withheld: set[UUID] = set()  # through groups that the user is no member of, at this look
        self._kept: deque[tuple[float, Waiting]] = deque()
        self._kept_bytes = 0
        self._due = asyncio.Event()
        self._more = True  # the last look may have left something behind, for want of room
        self._begun = True  # look for what this client began on an earlier connection

    def look(self) -> None:
        """Something may wait: look for it."""
        self._due.set()

    def made_room(self) -> None:
        """There is room again, for what had none."""
        self._offer_kept()
        if self._more:
            self._due.set()

    def set_aside(self, transfer: UUID) -> None:
        """Offer a delivery no more on this connection."""
        self._set_aside.add(transfer)

    def forget(self, transfer: UUID) -> None:
        """Let the rows say again whether a delivery is to be offered."""
        self._set_aside.discard(transfer)

    def push(self, waiting: Waiting) -> None:
        """Offer what came with its wake-up as soon as there is room; what cannot wait for that is found in the rows."""
        if self._known(waiting.transfer) or not self._keep(waiting):
            self.look()
        else:
            self._offer_kept()

    def _keep(self, waiting: Waiting) -> bool:
        size = len(waiting.inline or b"")
        if len(self._kept) >= MOST_KEPT or self._kept_bytes + size > KEPT_BYTES:
            return False
        self._kept.append((time.monotonic(), waiting))
        self._kept_bytes += size
        return True

    def _offer_kept(self) -> None:
        """Offer what is kept, in its order, while there is room. What is too old for that may be over by now."""
        while self._kept and self._room() > 0:
            since, waiting = self._kept.popleft()
            self._kept_bytes -= len(waiting.inline or b"")
            if time.monotonic() - since > KEPT_SECONDS:
                self._kept.clear()
                self._kept_bytes = 0
                return self.look()
            if not self._known(waiting.transfer):
                self._offer(waiting)
        return None

    def _known(self, transfer: UUID) -> bool:
        offered = (outflow.waiting.transfer for outflow in self._session.outflows.values())
        return transfer in self._set_aside or transfer in offered

    async def run(self) -> None:
        """Offer what waits whenever there is room for it."""
        while True:
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._due.wait()
            except TimeoutError:
                pass  # a wake-up may have been lost
            self._due.clear()
            await self._offer_all()

    async def _offer_all(self) -> None:
        session = self._session
        self._more = True
        self._withheld.clear()
        await session.process.neighbours.announced.wait()
        await session.process.received.settle()  # what another connection just finished is not offered here
        if self._begun and not await session.process.questions.may_wait(session.user.pk, session.client):
            self._more = self._begun = False
            return
        while (room := self._room()) > 0:
            known = {outflow.waiting.transfer for outflow in session.outflows.values()}
            known |= self._set_aside | self._withheld
            found = await session.db(
                deliveries.waiting,
                session.user.pk,
                session.client,
                known=known,
                most=room,
                begun=self._begun,
            )
            may_have = await membership.allowed(session, found)
            self._withheld |= {one.transfer for one in found} - {one.transfer for one in may_have}
            for waiting in may_have[: self._room()]:
                if not self._known(waiting.transfer):  # it may have been pushed while we looked
                    self._offer(waiting)
            if len(found) < room:
                self._more = self._begun = False
                return

    def _room(self) -> int:
        connection = self._session.connection
        if not connection.welcomed or connection.going_away:
            return 0
        return min(MAX_UNANSWERED_OFFERS - connection.unanswered(), self._most_live - len(connection.senders))

    def _offer(self, waiting: Waiting) -> None:
        session = self._session
        sender = session.connection.offer(
            DeliveryOffer(
                transfer=str(waiting.transfer),
                handle=1,
                name=waiting.name,
                size=waiting.size,
                content_type=waiting.content_type,
                chunk_size=self._chunk_size,
                sha256=waiting.sha256,
                meta=waiting.meta,
                payload=str(waiting.payload),
                sender=waiting.sender,
                expires=None if waiting.expires is None else waiting.expires.isoformat().replace("+00:00", "Z"),
            ),
            first=waiting.first and waiting.inline is not None,
            now=time.monotonic(),
        )
        download_offers.begin(session, Outflow(session.process, sender, waiting, session.wake))
