"""The end of one upload: everything is stored, its digest is asked for until it is there (PROTOCOL section 4)."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from delivery import dispatch
from delivery.buffer import leases
from delivery.errors import IntegrityError, Refused, StaleLease, TransferAborted
from delivery.models import PayloadState
from delivery.protocol.receiver import Receiver
from delivery.server.web_process import Process
from delivery.transfers import digests, outcomes
from delivery.transfers.segments import StoreRequest
from delivery.transfers.uploads import FinishedUpload, Opened

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0


class Finishing:
    """Has one payload sealed. Belongs to the event loop of its connection."""

    def __init__(self, process: Process, receiver: Receiver, opened: Opened) -> None:
        self.due_at = 0.0  # monotonic seconds at which to `step` again
        self._process = process
        self._receiver = receiver
        self._opened = opened
        self._attempt = 0

    def again(self) -> None:
        """The task could not do it, or had to stop: ask for another soon."""
        self.due_at = time.monotonic() + RETRY_SECONDS

    def by_storing(self, order: StoreRequest) -> StoreRequest:
        """Have the task that stores the last run complete the payload with it, if it can.

        It tells `sealed` before `stored`: who only hears that all is stored has it sealed at once.
        """
        promised = self._receiver.expected_digests()
        return order if len(promised) > 1 else replace(order, completes=True, sha256=next(iter(promised), ""))

    async def step(self, lease: int) -> FinishedUpload | None:
        """Ask for the digest if that is due; return the outcome if it is there already.

        Raises `TransferAborted` where the payload has ended, or a newer writer holds it.
        """
        if time.monotonic() < self.due_at:
            return None
        finished = await self._begin(lease) if self._attempt == 0 else await self._outcome()
        if finished is not None:
            return finished
        arguments = {"payload": self._opened.payload.hex}
        marker = dispatch.seal_marker(self._opened.payload)
        await self._process.publish(dispatch.SEAL, arguments, marker=marker, attempt=self._attempt)
        # Not doubling: sealing is long, and asking for one that runs costs no more than a look at its row.
        self.due_at = time.monotonic() + leases.FIRST_SECONDS
        self._attempt += 1
        return None

    async def _begin(self, lease: int) -> FinishedUpload | None:
        promised = self._receiver.expected_digests()
        if len(promised) > 1:  # the offer promised another one than `finish`
            raise TransferAborted("digest", "finish contradicts the offer")
        digest = next(iter(promised), None)
        try:
            await self._process.db(digests.begin, self._opened.transfer, lease, self._receiver.size or 0, digest)
        except StaleLease:
            finished = await self._outcome()
            if finished is None:
                raise TransferAborted("taken_over", final=False) from None
            return finished
        except Refused as refused:  # its size is learned only now
            raise TransferAborted("too_large", refused.message) from refused
        except IntegrityError as error:
            logger.error("upload %s: %s", self._opened.payload, error)
            raise TransferAborted("integrity", "stored bytes are missing", final=False) from error
        return None

    async def _outcome(self) -> FinishedUpload | None:
        """Ask the database what a lost wake-up would have told."""
        state, size, sha256, failure = await self._process.db(outcomes.outcome, self._opened.payload)
        if state == PayloadState.COMPLETE:
            return FinishedUpload(self._opened.payload, size, sha256)
        if state not in (PayloadState.STORING, PayloadState.SEALING):
            raise TransferAborted(failure or "cancelled")
        return None
