"""Room is made ahead of what is written, and no file is longer for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from delivery import reservation
from delivery.reservation import reserve

MIB = 1_048_576


def test_reserved_room_leaves_the_length_of_a_file(tmp_path: Path) -> None:
    with open(tmp_path / "part", "wb") as file:
        if not reserve(file.fileno(), 0, 4 * MIB):
            pytest.skip("no reservations on this platform or file system")
        found = os.fstat(file.fileno())
        assert (found.st_size, found.st_blocks * 512) == (0, 4 * MIB)


def test_what_cannot_be_reserved_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "part").touch()
    with open(tmp_path / "part", "rb") as file:
        assert not reserve(file.fileno(), 0, MIB)
    monkeypatch.setattr(reservation, "_fallocate", None)
    with open(tmp_path / "part", "wb") as file:
        assert not reserve(file.fileno(), 0, MIB)
