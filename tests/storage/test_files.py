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


class Renaming(FileSystemStorage):
    """Stores under another name than it was asked for, below a folder of its own."""

    def _save(self, name: str, content: File[Any]) -> str:
        return str(super()._save(f"elsewhere/{name}", content))


class ReadingTwice(FileSystemStorage):
    """Tries again what failed, from the first byte on."""

    def _save(self, name: str, content: File[Any]) -> str:
        list(content.chunks())
        return str(super()._save(name, content))


class Hasty(FileSystemStorage):
    """Says that all is well before it has read everything."""

    def _save(self, name: str, content: File[Any]) -> str:
        return str(super()._save(name, ContentFile(next(content.chunks()))))


class Undeletable(FileSystemStorage):
    """Raises what no backend of Django's raises."""

    def delete(self, name: str) -> None:
        raise LookupError(name)


class Unlistable(FileSystemStorage):
    def listdir(self, path: str) -> tuple[list[str], list[str]]:
        raise NotImplementedError


def use(folder: Path, kind: type) -> Any:
    backend = {"BACKEND": f"{kind.__module__}.{kind.__qualname__}", "OPTIONS": {"location": folder}}
    return override_settings(STORAGES={"delivery": backend})


def test_a_file_is_read_under_the_name_that_the_storage_returned(tmp_path: Path) -> None:
    payload = uuid4()
    with use(tmp_path, Renaming):
        name = files.write("delivery", payload, 0, 1, iter([b"one", b"two"]), 6)
        assert name.startswith(f"elsewhere/{payload}/0-1-")
        assert b"".join(files.read_bytes("delivery", name, 0, 6)) == b"onetwo"
        assert files.delete("delivery", name)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("kind", [ReadingTwice, Hasty])
def test_a_storage_that_did_not_take_every_byte_has_not_stored_the_file(tmp_path: Path, kind: type) -> None:
    with use(tmp_path, kind), pytest.raises(StorageUnavailable):
        files.write("delivery", uuid4(), 0, 1, iter([b"one", b"two"]), 6)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_name_that_fits_into_no_row_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_NAME", 20)
    with use(tmp_path, FileSystemStorage), pytest.raises(StorageUnavailable):
        files.write("delivery", uuid4(), 0, 1, iter([b"one"]), 3)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_delete_that_raises_hides_no_other_error(tmp_path: Path) -> None:
    def breaking() -> Any:
        yield b"one"
        raise ZeroDivisionError

    with use(tmp_path, Undeletable):
        with pytest.raises(ZeroDivisionError):
            files.write("delivery", uuid4(), 0, 1, breaking(), 6)
        assert not files.delete("delivery", "x")
        files.delete_folder("delivery", uuid4())


def test_a_storage_that_cannot_list_has_no_names(tmp_path: Path) -> None:
    with use(tmp_path, Unlistable):
        assert files.names("delivery", uuid4()) == []
        assert files.folders("delivery") == []
