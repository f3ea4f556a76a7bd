"""An intake asks for the last run of an upload once: with `finish`, so that its task can complete the payload."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest

from delivery.buffer import pool
from delivery.buffer.stream import Stream
from delivery.protocol.frames import Chunk, checksum
from delivery.protocol.messages import Finish, UploadOffer
from delivery.protocol.receiver import Receiver, Terms
from delivery.server import upload as module
from delivery.server.store_requests import StoreRequests
from delivery.server.upload import Reports, UploadReceiver
from delivery.transfers.segments import StoreRequest

CHUNK = 4096
CHUNKS = 3
DATA = bytes(CHUNK * CHUNKS)
SHA256 = hashlib.sha256(DATA).hexdigest()


class Site:
    """An upload of three chunks, stored two at a time, in a process that notes which tasks are asked for."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.confirmed = 0
        self.chunks = Stream()
        offer = UploadOffer(
            transfer=str(uuid4()), handle=1, name="", size=len(DATA), content_type="", chunk_size=CHUNK, to=()
        )
        self.receiver = Receiver(offer)
        terms = Terms(window=8 * CHUNK, segment_size=2 * CHUNK, max_size=len(DATA))
        self.receiver.accept(chunk_size=CHUNK, stored=0, terms=terms, now=0.0)
        opened = SimpleNamespace(transfer=uuid4(), payload=uuid4(), lease=1)
        process = SimpleNamespace(
            chunks=self.chunks,
            publish=self._publish,
            credit=SimpleNamespace(crowds=lambda _: False),
            store_requests=StoreRequests(self._publish_stores, lambda: 1, segment=1),
        )
        reports = Reports(changed=lambda: None, rewind=lambda *_: None, confirm=self._confirm)
        self.intake = UploadReceiver(cast(Any, process), self.receiver, cast(Any, opened), reports)

    async def _publish(self, _task: str, arguments: dict[str, Any], **_: Any) -> bool:
        self.asked.append(arguments)
        return True

    async def _publish_stores(self, orders: Sequence[StoreRequest]) -> None:
        self.asked += [order.arguments() for order in orders]

    async def _confirm(self) -> None:
        self.confirmed += 1

    def take_all(self) -> None:
        for seq in range(CHUNKS):
            data = memoryview(DATA)[:CHUNK]
            chunk = Chunk(1, seq, checksum(data), data)
            self.receiver.on_chunk(chunk, 0.0)
            self.intake.keep(chunk)

    def finish(self) -> None:
        self.receiver.on_finish(Finish(handle=1, size=len(DATA), chunks=CHUNKS, sha256=SHA256))

    @property
    def runs(self) -> list[tuple[int, bool]]:
        return [(order["start"], order["completes"]) for order in self.asked]


@pytest.fixture
async def site(valkey: None) -> Any:
    site = Site()
    yield site
    await site.chunks.close()
    await pool.aclose()


async def test_the_last_run_waits_a_moment_for_finish_and_completes(site: Site) -> None:
    site.take_all()
    await site.intake._move()
    assert site.runs == [(0, False)]
    site.finish()
    await site.intake._move()
    assert site.runs == [(0, False), (2, True)]
    assert site.asked[1]["sha256"] == SHA256
    assert site.confirmed == 1


async def test_the_last_run_does_not_wait_longer_than_that(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FINISH_SECONDS", 0.0)
    site.take_all()
    await site.intake._move()
    await asyncio.sleep(0.01)
    await site.intake._move()
    assert site.runs == [(0, False), (2, False)]


@pytest.mark.parametrize("finished", [False, True])
async def test_what_is_left_when_the_connection_goes_is_stored_at_once_and_completes_nothing(
    site: Site, *, finished: bool
) -> None:
    site.take_all()
    if finished:
        site.finish()
    await site.intake.detach()
    assert site.runs == [(0, False), (2, False)]
    assert site.confirmed == 0


async def test_before_a_close_the_last_run_is_asked_for_without_finish(site: Site) -> None:
    site.take_all()
    site.intake.hurry()
    await site.intake._move()
    assert site.runs == [(0, False), (2, False)]
