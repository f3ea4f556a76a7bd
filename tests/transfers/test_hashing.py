"""Hashing as segments are stored: sealing goes on from there, and reads everything where it cannot trust that."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.test import override_settings

from delivery.buffer import leases
from delivery.models import Payload, PayloadState, Segment
from delivery.storage import files
from delivery.transfers import digests

SEGMENT = 300_000
DATA = os.urandom(3 * SEGMENT + 17)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def payload(valkey: None, tmp_path: Path) -> Iterator[Payload]:
    """A payload that is being sealed, none of its segments stored yet."""
    local = {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": tmp_path}}
    with override_settings(STORAGES={"delivery": local}):
        owner = User.objects.create(username=f"u{uuid4().hex[:8]}")
        yield Payload.objects.create(
            owner=owner, size=len(DATA), state=PayloadState.SEALING, expected_sha256=hashlib.sha256(DATA).hexdigest()
        )


def store(payload: Payload, offset: int) -> Segment:
    data = DATA[offset : offset + SEGMENT]
    name = files.write("delivery", payload.pk, offset, 1, iter([data]), len(data))
    return Segment.objects.create(payload=payload, storage="delivery", name=name, offset=offset, length=len(data))


def read_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count what is read from Storage from now on."""
    counted: list[int] = []
    opening = files.opened

    @contextlib.contextmanager
    def counting(alias: str, name: str, offset: int) -> Iterator[Any]:
        with opening(alias, name, offset) as raw:
            yield _Counting(raw, counted)

    monkeypatch.setattr(files, "opened", counting)
    return counted


class _Counting:
    def __init__(self, raw: Any, counted: list[int]) -> None:
        self._raw = raw
        self._counted = counted

    def read(self, size: int) -> bytes:
        data: bytes = self._raw.read(size)
        self._counted.append(len(data))
        return data

    def readinto(self, buffer: memoryview) -> int:
        got: int = self._raw.readinto(buffer)
        self._counted.append(got)
        return got


def sealed(payload: Payload) -> str:
    digests.seal(payload.pk, worker="test")
    payload.refresh_from_db()
    return str(payload.state)


def test_sealing_reads_only_what_is_not_hashed_yet(payload: Payload, monkeypatch: pytest.MonkeyPatch) -> None:
    for offset in (0, SEGMENT, 2 * SEGMENT):
        store(payload, offset)
        digests.hash_ahead(payload.pk, leases.hold_digest(payload.pk))
    store(payload, 3 * SEGMENT)
    counted = read_bytes(monkeypatch)
    assert sealed(payload) == "complete"
    assert sum(counted) == 17


def test_segments_are_hashed_in_order_whatever_came_first(payload: Payload, monkeypatch: pytest.MonkeyPatch) -> None:
    for offset in (SEGMENT, 0, 3 * SEGMENT, 2 * SEGMENT):
        store(payload, offset)
        digests.hash_ahead(payload.pk, leases.hold_digest(payload.pk))
    counted = read_bytes(monkeypatch)
    assert (sealed(payload), sum(counted)) == ("complete", 0)


@pytest.mark.parametrize("lost", ["gone", "damaged", "held"])
def test_without_a_state_everything_is_read(payload: Payload, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    for offset in range(0, len(DATA), SEGMENT):
        store(payload, offset)
        digests.hash_ahead(payload.pk, leases.hold_digest(payload.pk))
    if lost == "gone":
        leases.drop_digest(payload.pk)
    elif lost == "damaged":
        record = leases.hold_digest(payload.pk) or b""
        leases.put_digest(payload.pk, record[:-5] + b"00000")
    else:
        leases.hold_digest(payload.pk)
        monkeypatch.setattr(digests, "MOST_LOOKS", 2)
    counted = read_bytes(monkeypatch)
    assert (sealed(payload), sum(counted)) == ("complete", len(DATA))


@pytest.mark.parametrize("damage", ["flipped", "shorter"])
def test_a_file_changed_after_it_was_hashed_is_noticed(payload: Payload, tmp_path: Path, damage: str) -> None:
    for offset in range(0, len(DATA), SEGMENT):
        segment = store(payload, offset)
        digests.hash_ahead(payload.pk, leases.hold_digest(payload.pk))
    with (tmp_path / segment.name).open("r+b") as file:
        if damage == "shorter":
            file.truncate(5)
        else:
            byte = file.read(1)
            file.seek(0)
            file.write(bytes([byte[0] ^ 1]))
    assert sealed(payload) == "failed"


def test_another_digest_than_expected_is_computed_again_before_it_fails(
    payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    for offset in range(0, len(DATA), SEGMENT):
        store(payload, offset)
        digests.hash_ahead(payload.pk, leases.hold_digest(payload.pk))
    hashed = digests.resume_hashed(payload)
    assert hashed is not None
    hashed.sha256.update(b"wrong")
    digests.keep_hashed(payload.pk, hashed)
    counted = read_bytes(monkeypatch)
    assert (sealed(payload), sum(counted)) == ("complete", len(DATA))
