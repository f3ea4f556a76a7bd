"""A sink has room made ahead of what it writes, and its file is no longer for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from delivery.client import file_sink
from delivery.client.file_sink import FileSink
from tests.reservations import note_reservations

MIB = 1_048_576


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def reserved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The reservations that a sink asks for, as offset and length."""
    return note_reservations(monkeypatch, file_sink)


async def test_a_sink_reserves_as_it_goes_and_never_beyond_the_end(
    tmp_path: Path, pool: ThreadPoolExecutor, reserved: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_sink, "RESERVE_BYTES", 2 * MIB)
    data = os.urandom(5 * MIB + 12_345)
    sink = FileSink(tmp_path, "one", "scan.tif", len(data), pool=pool)
    await sink.open()
    for at in range(0, len(data), MIB):
        await sink.write([memoryview(data)[at : at + MIB]])
        assert (tmp_path / ".delivery/one.part").stat().st_size == min(at + MIB, len(data))
    saved = await sink.finish(set())
    assert reserved == [(0, 2 * MIB), (2 * MIB, 2 * MIB), (4 * MIB, MIB + 12_345)]
    assert saved.path is not None
    assert saved.path.read_bytes() == data


async def test_a_resumed_sink_reserves_from_its_position_on(
    tmp_path: Path, pool: ThreadPoolExecutor, reserved: list[tuple[int, int]]
) -> None:
    data = os.urandom(3 * MIB)
    for begin, end in [(0, MIB), (MIB, 3 * MIB)]:
        sink = FileSink(tmp_path, "one", "scan.tif", len(data), pool=pool)
        await sink.open()
        assert sink.position == begin
        await sink.write([memoryview(data)[begin:end]])
        await sink.close()
    assert reserved == [(0, 3 * MIB), (MIB, 2 * MIB)]


@pytest.mark.parametrize("size", [None, 1000])
async def test_nothing_is_reserved_for_small_and_unknown_sizes(
    tmp_path: Path, pool: ThreadPoolExecutor, reserved: list[tuple[int, int]], size: int | None
) -> None:
    sink = FileSink(tmp_path, "one", "scan.tif", size, pool=pool)
    await sink.open()
    await sink.write([memoryview(bytes(1000))])
    assert (await sink.finish(set())).size == 1000
    assert reserved == []


async def test_a_sink_goes_on_where_nothing_can_be_reserved(
    tmp_path: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(file_sink, "reserve", lambda descriptor, offset, length: bool(asked.append(offset)))
    sink = FileSink(tmp_path, "one", "scan.tif", 40 * MIB, pool=pool)
    await sink.open()
    for _ in range(40):
        await sink.write([memoryview(bytes(MIB))])
    assert (await sink.finish(set())).size == 40 * MIB
    assert asked == [0]
