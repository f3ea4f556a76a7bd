"""What is reserved while a test runs."""

from __future__ import annotations

from types import ModuleType

import pytest

from delivery.reservation import reserve


def note_reservations(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[tuple[int, int]]:
    """Return the reservations that `module` will ask for, as offset and length; they are made as ever."""
    asked: list[tuple[int, int]] = []

    def noting(descriptor: int, offset: int, length: int) -> bool:
        asked.append((offset, length))
        return reserve(descriptor, offset, length)

    monkeypatch.setattr(module, "reserve", noting)
    return asked
