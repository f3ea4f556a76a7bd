"""Writing segments: room is made for what will be written, and only where exactly that is written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.core.files.base import ContentFile, File
from django.core.files.storage import FileSystemStorage
from django.test import override_settings

from delivery.errors import StorageUnavailable
from delivery.storage import files
from tests.reservations import note_reservations

MIB = 1024 * 1024


class Shrinking(FileSystemStorage):
    """Stores something else than what it was given."""

    def _save(self, name: str, content: File[Any]) -> str:
        return str(super()._save(name, ContentFile(content.read()[:10])))


@pytest.fixture
def reserved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The reservations that are asked for, as offset and length."""
    return note_reservations(monkeypatch, files)


def write(folder: Path, pieces: list[bytes], *, kind: type = FileSystemStorage) -> bytes:
    backend = {"BACKEND": f"{kind.__module__}.{kind.__qualname__}", "OPTIONS": {"location": folder}}
    with override_settings(STORAGES={"delivery": backend}):
        name = files.write("delivery", uuid4(), 0, 1, iter(pieces), sum(map(len, pieces)))
    return (folder / name).read_bytes()


def test_room_for_a_whole_file_is_made_behind_its_first_piece(tmp_path: Path, reserved: list[tuple[int, int]]) -> None:
    pieces = [os.urandom(MIB), os.urandom(MIB), b"end"]
    assert write(tmp_path, pieces) == b"".join(pieces)
    assert reserved == [(0, 2 * MIB + 3)]


def test_a_file_of_one_piece_needs_none(tmp_path: Path, reserved: list[tuple[int, int]]) -> None:
    assert write(tmp_path, [b"all of it"]) == b"all of it"
    assert reserved == []


def test_no_room_is_made_where_something_else_is_written(tmp_path: Path, reserved: list[tuple[int, int]]) -> None:
    assert write(tmp_path, [bytes(MIB), bytes(MIB)], kind=Shrinking) == bytes(10)
    assert reserved == []


def test_a_file_that_did_not_become_whole_is_gone(tmp_path: Path, reserved: list[tuple[int, int]]) -> None:
    def breaking() -> Any:
        yield bytes(MIB)
        raise OSError("away")

    backend = {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": tmp_path}}
    with override_settings(STORAGES={"delivery": backend}), pytest.raises(StorageUnavailable):
        files.write("delivery", uuid4(), 0, 1, breaking(), 2 * MIB)
    assert reserved == [(0, 2 * MIB)]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
