"""The deliveries of one connection: offered, accepted, acked, done, declined, ended.

Offers the deliveries that are pending at hello and those that arrive later, up to the number that may be open.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any
from uuid import UUID

from delivery import conf, notify, policy
from delivery.buffer.blocks import BLOCK_SIZE
from delivery.errors import Refused, StorageUnavailable, TransferAborted
from delivery.protocol import events, messages
from delivery.protocol.limits import MAX_UNANSWERED_OFFERS
from delivery.protocol.messages import DeliveryOffer
from delivery.protocol.sender import Sender
from delivery.server import membership
from delivery.server.download import DownloadSender
from delivery.server.ports import ConnectionPart, ConnectionPort
from delivery.server.web_process import WebProcess
from delivery.transfers import deliveries
from delivery.transfers.deliveries import AcceptedDelivery, DetachedDelivery, Received, Waiting

logger = logging.getLogger(__name__)

LOOK_SECONDS = 60.0
INLINE_SECONDS = 0.05
OFFER_AGAIN_SECONDS = 5.0
# What came while there was no room, kept for as long as it may be offered without another look at the rows.
MOST_KEPT = 64
KEPT_BYTES = 256 * 1024
KEPT_SECONDS = 1.0


class ServerDownloads(ConnectionPart):
    """The deliveries that are live on one connection, and what it is still to be offered. Belongs to its event loop."""

    def __init__(self, connection: ConnectionPort, process: WebProcess) -> None:
        super().__init__(connection)
        options = conf.current()
        self._process = process
        self._live: dict[int, DownloadSender] = {}  # by handle
        # Larger chunks than blocks cost more: each is sent in several parts.
        self._chunk_size = min(options.chunk_size, BLOCK_SIZE)
        self._most_live = options.max_live_transfers
        self._set_aside: set[UUID] = set()  # not to be offered again on this connection
        self._withheld: set[UUID] = set()  # through groups that the user is no member of, at this look
        self._kept: deque[tuple[float, Waiting]] = deque()
        self._kept_bytes = 0
        self._due = asyncio.Event()
        self._more = True  # the last look may have left something behind, for want of room
        self._begun = True  # look for what this client began on an earlier connection

    # -- what others ask ---------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._live)

    def find(self, sender: Sender) -> DownloadSender:
        """Return what gives the frames of a live sender."""
        return self._live[sender.handle]

    def staged(self, payload: UUID) -> bool:
        """Return whether a range of `payload` is of use to one of them."""
        return any(download.granted and download.waiting.payload == payload for download in self._live.values())

    def moved_since(self, worker: str, since: float) -> bool:
        """Return whether `worker` staged what one of them reads after `since` (monotonic seconds)."""
        staged_by = self._process.cache.staged_by
        return any(
            download.granted and staged_by(download.waiting.payload, since) == worker
            for download in self._live.values()
        )

    def drop_stalled(self, now: float) -> None:
        """Let go of those whose recipient has not moved for too long."""
        for download in list(self._live.values()):
            if download.sender.stalled(now):
                self._drop(download, "stalled", final=False)

    def taken_over(self, transfer: UUID) -> None:
        """A newer connection of this client holds a delivery."""
        for download in self._of(transfer):
            self._drop(download, "taken_over", final=False)

    def ended(self, transfer: UUID, code: str) -> None:
        """A transfer was ended elsewhere: cancelled in the admin, expired by the sweep."""
        for download in self._of(transfer):
            self._drop(download, code, final=True)

    def _of(self, transfer: UUID) -> list[DownloadSender]:
        return [download for download in self._live.values() if download.waiting.transfer == transfer]

    async def check_groups(self) -> None:
        """End every delivery through a group that its user has left since, as `forbidden`.

        Where the policy does not answer, they end for now alone.
        """
        held = [download for download in self._live.values() if download.waiting.groups]
        if not held:
            return
        connection = self._connection
        names = {name for download in held for name in download.waiting.groups}
        groups = await membership.groups_of(self._process, connection.user.pk, names)
        for download in held:
            if connection.over or self._live.get(download.sender.handle) is not download:
                continue
            if groups is None:
                self._drop(download, "busy", final=False)
            elif not membership.may_have(download.waiting, groups):
                self._withdraw(download)

    # -- offering ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Offer what waits whenever there is room for it. The connection owns the task."""
        while True:
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._due.wait()
            except TimeoutError:
                pass  # a wake-up may have been lost
            self._due.clear()
            await self._offer_all()

    def look(self) -> None:
        """Something may wait: look for it."""
        self._due.set()

    def arrived(self, address: str, waiting: Waiting | None) -> None:
        """A payload has arrived for an address that this connection has joined; `waiting`: all of it, if it is small."""
        if waiting is not None:
            self._push(waiting)
        else:
            self._connection.spawn(self._look_for(address), "arrival")

    async def _look_for(self, address: str) -> None:
        if address.startswith(policy.GROUP):
            await membership.catch_up(self._process, self._connection.user.pk, address)
        self.look()

    def _push(self, waiting: Waiting) -> None:
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

    def _made_room(self) -> None:
        """There is room again, for what had none."""
        self._offer_kept()
        if self._more:
            self._due.set()

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
        offered = (download.waiting.transfer for download in self._live.values())
        return transfer in self._set_aside or transfer in offered

    async def _offer_all(self) -> None:
        connection, process = self._connection, self._process
        self._more = True
        self._withheld.clear()
        await process.presence.announced()
        await process.received.settle()  # what another connection just finished is not offered here
        if self._begun and not await process.questions.may_wait(connection.user.pk, connection.client):
            self._more = self._begun = False
            return
        while (room := self._room()) > 0:
            found = await self._find_waiting(room)
            may_have = await self._allowed(found)
            self._withheld |= {one.transfer for one in found} - {one.transfer for one in may_have}
            for waiting in may_have[: self._room()]:
                if not self._known(waiting.transfer):  # it may have been pushed while we looked
                    self._offer(waiting)
            if len(found) < room:
                self._more = self._begun = False
                return

    async def _find_waiting(self, most: int) -> list[Waiting]:
        connection = self._connection
        known = {download.waiting.transfer for download in self._live.values()} | self._set_aside | self._withheld
        return await connection.db(
            deliveries.waiting,
            connection.user.pk,
            connection.client,
            known=known,
            most=most,
            begun=self._begun,
        )

    async def _allowed(self, found: list[Waiting]) -> list[Waiting]:
        """Return those of `found` that the user may have now."""
        names = {name for waiting in found for name in waiting.groups}
        groups = await membership.groups_of(self._process, self._connection.user.pk, names) or frozenset()
        return [waiting for waiting in found if membership.may_have(waiting, groups)]

    def _room(self) -> int:
        core = self._connection.core
        if not core.welcomed or core.going_away:
            return 0
        return min(MAX_UNANSWERED_OFFERS - core.unanswered(), self._most_live - len(core.senders))

    def _offer(self, waiting: Waiting) -> None:
        connection = self._connection
        sender = connection.core.offer(
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
        self._begin(DownloadSender(self._process, sender, waiting, connection.wake))

    def _begin(self, download: DownloadSender) -> None:
        """Serve a delivery that has just been offered."""
        connection = self._connection
        self._live[download.sender.handle] = download
        if download.waiting.inline is None:  # else there is nothing to fetch
            download.task = connection.spawn(self._flow(download), "delivery")
        connection.transfers_live()
        connection.wake()

    async def _flow(self, download: DownloadSender) -> None:
        try:
            await download.run()
        except TransferAborted as aborted:
            self._drop(download, aborted.code, final=True)
        except StorageUnavailable as error:
            logger.error("%s", error)
            self._drop(download, "storage_unavailable", final=False)

    # -- the client's answers ----------------------------------------------------------------------------------------

    def accepted(self, sender: Sender) -> None:
        """Enter an accept into the rows, and let chunks flow."""
        download = self._live.get(sender.handle)
        if download is None:  # ended in this moment
            return
        connection = self._connection
        if download.waiting.inline is None:
            connection.spawn(self._enter(download), "accept")
            return
        # Its `done` is most likely on its way. Who is slower than that gets its place in the rows after all.
        self._made_room()
        connection.wake()
        asyncio.get_running_loop().call_later(INLINE_SECONDS, self._enter_slow, connection, download)

    def _enter_slow(self, connection: ConnectionPort, download: DownloadSender) -> None:
        if self._live.get(download.sender.handle) is download and not connection.over:
            connection.spawn(self._enter(download), "accept")

    async def _enter(self, download: DownloadSender) -> None:
        connection, transfer = self._connection, download.waiting.transfer
        accepted = AcceptedDelivery(transfer, connection.require_holder(), download.sender.acked_bytes)
        try:
            displaced = await self._process.accepted.put(accepted)
        except Refused as refused:
            self._drop(download, refused.code, final=refused.code != "taken_over")
            return
        if displaced:
            await notify.atell_channel(displaced, "taken_over", transfer=transfer.hex, lease=0)
        download.grant()
        self._made_room()
        connection.wake()

    def acked(self, event: events.Acked) -> None:
        """Note how far the client is, and go on with the credit that it gave."""
        download = self._live.get(event.sender.handle)
        if download is not None:
            if event.progressed:
                client = self._connection.client
                self._process.note_position(download.waiting.transfer, client, download.sender.acked_bytes)
            download.wake()

    def done(self, sender: Sender) -> None:
        """The client has all of it. It is noted at once, and not by a task, which would end with the connection."""
        download = self._let_go(sender)
        if download is not None:
            connection, transfer = self._connection, download.waiting.transfer
            self._process.forget_position(transfer, connection.client)
            self._set_aside.add(transfer)  # until the rows say that it is over
            self._made_room()
            noted = self._process.received.add(Received(transfer, connection.client, download.waiting.size))
            noted.add_done_callback(lambda _: self._noted(connection, transfer, noted))

    def _noted(self, connection: ConnectionPort, transfer: UUID, noted: asyncio.Future[None]) -> None:
        if noted.cancelled():
            return
        if (error := noted.exception()) is not None:
            logger.error("connection of %s fails", connection.client, exc_info=error)
            connection.close(1011, "internal error")
            return
        self._set_aside.discard(transfer)

    async def rejected(self, sender: Sender, code: str) -> None:
        """The client does not want it now, or, where it declined, not at all."""
        download = self._let_go(sender)
        if download is not None:
            self._set_aside.add(download.waiting.transfer)
            if code == "declined":
                await self._decline(download)
            self._made_room()

    async def aborted(self, sender: Sender, message: messages.Abort) -> None:
        """The client ended it, for good or on this connection."""
        download = self._let_go(sender)
        if download is None:
            return
        waiting = download.waiting
        self._set_aside.add(waiting.transfer)
        if message.final:
            if message.code == "digest":  # its own disk, or ours: somebody is to look
                client = self._connection.client
                logger.error("client %s received other bytes than payload %s", client, waiting.payload)
                await self._connection.db(deliveries.note_damaged, waiting.transfer, waiting.payload)
            await self._decline(download)
        else:
            await self._detach(download)
        self._made_room()

    async def _decline(self, download: DownloadSender) -> None:
        connection = self._connection
        await connection.db(deliveries.decline, download.waiting.transfer, connection.client)

    # -- ends --------------------------------------------------------------------------------------------------------

    def _drop(self, download: DownloadSender, code: str, *, final: bool) -> None:
        """Tell the peer that a delivery ends here."""
        connection, transfer = self._connection, download.waiting.transfer
        self._let_go(download.sender)
        if download.sender.live:
            connection.core.abort(download.sender, code, final=final)
        self._set_aside.add(transfer)
        if not final and code != "taken_over":
            connection.spawn(self._offer_again(transfer), "offer again")
        connection.wake()

    def _withdraw(self, download: DownloadSender) -> None:
        """End a delivery whose user may not have it any more. Its row stays: should they be let in again, it is offered again."""
        self._drop(download, "forbidden", final=True)
        self._set_aside.discard(download.waiting.transfer)
        self._connection.spawn(self._detach(download), "detach")

    async def _offer_again(self, transfer: UUID) -> None:
        """Offer what we let go of once more: its client may stay on this very connection for days."""
        await asyncio.sleep(random.uniform(0.5, 1.0) * OFFER_AGAIN_SECONDS)
        self._set_aside.discard(transfer)
        self.look()

    def _let_go(self, sender: Sender) -> DownloadSender | None:
        """Take a delivery from its connection and end its run; return it, None where that was done already."""
        download = self._live.pop(sender.handle, None)
        if download is not None and download.task is not None and download.task is not asyncio.current_task():
            download.task.cancel()
        return download

    def detach_all(self) -> list[Coroutine[Any, Any, None]]:
        """Return the work of letting go of each, to be done by itself: the connection is gone."""
        downloads = list(self._live.values())
        for download in downloads:
            self._let_go(download.sender)
        return [self._detach(download) for download in downloads]

    async def _detach(self, download: DownloadSender) -> None:
        """Note how far it got, and that nobody holds it."""
        if download.granted:
            connection, transfer = self._connection, download.waiting.transfer
            channel = connection.require_holder().channel
            self._process.forget_position(transfer, connection.client)  # it is written with the rest
            position = download.sender.acked_bytes
            detached = DetachedDelivery(transfer, connection.client, channel, position, connection.close_code)
            await self._process.detached.put(detached)
