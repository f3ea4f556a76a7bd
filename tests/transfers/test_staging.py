"""Staging: a range comes out of Storage as blocks, however the payload was stored, or its payload ends visibly."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import override_settings

from delivery import notify
from delivery.buffer import blocks, pool
from delivery.buffer.blocks import BLOCK_SIZE, GROUP_SIZE, RANGE_GROUPS, RANGE_SIZE, Block
from delivery.buffer.stream import Stream
from delivery.errors import StorageUnavailable
from delivery.models import Payload, PayloadState, Segment
from delivery.storage import files, payloads
from delivery.transfers import ranges

DATA = os.urandom(RANGE_SIZE + 3 * BLOCK_SIZE + 17)
SEGMENTS = {
    "one file": [len(DATA)],
    "on blocks": [RANGE_SIZE, 2 * BLOCK_SIZE, BLOCK_SIZE + 17],
    "anywhere": [BLOCK_SIZE - 1, 5, RANGE_SIZE - 700_000, 1, 700_000, 2 * BLOCK_SIZE + 12],
}

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(notify, "wake", lambda _payload, event, **numbers: found.append((event, numbers)))
    return found


@pytest.fixture
def payload(valkey: None, tmp_path: Path) -> Iterator[Payload]:
    """A complete payload, none of its segments stored yet."""
    local = {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": tmp_path}}
    with override_settings(STORAGES={"delivery": local}):
        owner = User.objects.create(username="owner")
        yield Payload.objects.create(owner=owner, size=len(DATA), state=PayloadState.COMPLETE, sha256="0" * 64)


def store(payload: Payload, lengths: list[int], **fields: Any) -> None:
    at = 0
    for length in lengths:
        name = files.write("delivery", payload.pk, at, 1, iter([DATA[at : at + length]]), length)
        Segment.objects.create(payload=payload, storage="delivery", name=name, offset=at, length=length, **fields)
        at += length


def staged(payload: Payload, index: int) -> bytes | None:
    found = asyncio.run(_got(payload, index))
    return None if found is None else b"".join(block.data for block in found)


async def _got(payload: Payload, index: int) -> list[Block] | None:
    line = Stream()
    found: list[Block] = []
    size = payload.size or 0
    try:
        for group in range(index * RANGE_GROUPS, min((index + 1) * RANGE_GROUPS, -(-size // GROUP_SIZE))):
            if (one := await blocks.aget(line, payload.pk, size, group)) is None:
                return None
            found += one
        return found
    finally:
        await line.close()
        await pool.aclose()


@pytest.mark.parametrize("lengths", SEGMENTS.values(), ids=SEGMENTS)
def test_ranges_are_staged_however_the_payload_was_stored(
    payload: Payload, told: list[tuple[str, dict[str, Any]]], lengths: list[int]
) -> None:
    assert sum(lengths) == len(DATA)
    store(payload, lengths)
    for index in (1, 0):
        ranges.stage(payload.pk, index, worker="bee")
        assert staged(payload, index) == DATA[index * RANGE_SIZE : (index + 1) * RANGE_SIZE]
    assert told == [("staged", {"range": 1, "worker": "bee"}), ("staged", {"range": 0, "worker": "bee"})]


def test_one_task_may_stage_several_ranges(payload: Payload, told: list[tuple[str, dict[str, Any]]]) -> None:
    store(payload, [len(DATA)])
    ranges.stage(payload.pk, 0, worker="bee", count=2)
    assert [staged(payload, 0), staged(payload, 1)] == [DATA[:RANGE_SIZE], DATA[RANGE_SIZE:]]
    assert [detail["range"] for _, detail in told] == [0, 1]


def test_a_range_that_cannot_be_staged_ends_the_task(payload: Payload, told: list[tuple[str, dict[str, Any]]]) -> None:
    store(payload, [len(DATA)])
    Segment.objects.update(storage="nowhere")
    ranges.stage(payload.pk, 0, worker="bee", count=2)
    assert told == [("unstaged", {"range": 0, "worker": "bee"})]


def test_every_key_of_a_range_lapses_and_its_checksums_first(payload: Payload) -> None:
    store(payload, [len(DATA)])
    ranges.stage(payload.pk, 1, worker="bee")
    client = pool.client()
    lives = {key.decode().split(":")[2]: client.ttl(key) for key in client.keys("*")}
    assert 0 < lives["s"] < lives["g"]


def test_what_is_staged_already_is_not_read_again(payload: Payload, monkeypatch: pytest.MonkeyPatch) -> None:
    store(payload, [len(DATA)])
    ranges.stage(payload.pk, 1, worker="bee")
    monkeypatch.setattr(files, "opened", lambda *_: pytest.fail("read again"))
    ranges.stage(payload.pk, 1, worker="bee")


def test_a_payload_in_its_row_is_staged_too(payload: Payload) -> None:
    Payload.objects.update(inline=DATA[:1000], size=1000)
    ranges.stage(payload.pk, 0, worker="bee")
    payload.refresh_from_db()
    assert staged(payload, 0) == DATA[:1000]


@pytest.mark.parametrize("damage", ["a row", "the first row", "a file's end", "a site's file"])
def test_a_payload_whose_bytes_are_missing_ends_visibly(payload: Payload, tmp_path: Path, damage: str) -> None:
    fields = {"owned": False, "file_size": len(DATA) + 1} if damage == "a site's file" else {}
    store(payload, SEGMENTS["anywhere"] if "row" in damage else [len(DATA)], **fields)
    if damage == "a row":
        Segment.objects.filter(offset=BLOCK_SIZE - 1).delete()
    elif damage == "the first row":
        Segment.objects.filter(offset=0).delete()
    elif damage == "a file's end":
        os.truncate(tmp_path / Segment.objects.get().name, 10)
    ranges.stage(payload.pk, 0, worker="bee")
    payload.refresh_from_db()
    assert (payload.state, payload.failure) == (PayloadState.FAILED, "digest")
    assert staged(payload, 0) is None


def test_storage_that_fails_half_way_stages_nothing(
    payload: Payload, told: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store(payload, [len(DATA)])
    pieces = payloads.pieces_of

    def breaking(*arguments: Any) -> Iterator[memoryview]:
        for number, piece in enumerate(pieces(*arguments)):
            if number == 5:
                raise StorageUnavailable("away")
            yield piece

    monkeypatch.setattr(payloads, "pieces_of", breaking)
    ranges.stage(payload.pk, 0, worker="bee")
    assert told == [("unstaged", {"range": 0, "worker": "bee"})]
    assert staged(payload, 0) is None
    monkeypatch.undo()
    ranges.stage(payload.pk, 0, worker="bee")
    assert staged(payload, 0) == DATA[:RANGE_SIZE]
