"""A payload as a file: wherever it is read, over the borders of segments and pieces, it gives the payload's bytes."""

from __future__ import annotations

import os
import random

import pytest

from delivery import deliver
from delivery.storage import files
from tests.stack import Site

SEGMENT = 16 * 1024 * 1024
DATA = os.urandom(SEGMENT + 700_001)


@pytest.mark.parametrize("size", [0, 10, 70_000, len(DATA)], ids=["empty", "inline", "one segment", "two segments"])
async def test_any_place_can_be_read(shipped, site: Site, size):
    def read() -> None:
        data, chance = DATA[:size], random.Random(size)
        with deliver(data).open() as file:
            for _ in range(200):
                at, length = chance.randint(0, size + 10), chance.choice([0, 1, 1000, 300_000, size])
                assert file.seek(at) == at
                assert file.read(length) == data[at : at + length]
                assert file.tell() == min(at + length, max(at, size))
            file.seek(-1 if size else 0, os.SEEK_END)
            assert file.read() == data[-1:]

    await site.run(read)


async def test_each_stored_file_is_opened_once_to_read_it_all(shipped, site: Site, monkeypatch):
    """With object storage each opening is a download."""
    opened = []
    storage = files.storage

    def count(alias: str) -> object:
        opened.append(alias)
        return storage(alias)

    def read() -> bytes:
        payload = deliver(DATA)
        monkeypatch.setattr(files, "storage", count)
        with payload.open() as file:
            return file.read()

    assert await site.run(read) == DATA
    assert len(opened) == 2


async def test_reading_queries_no_database(shipped, site: Site):
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    def read() -> int:
        with deliver(DATA).open() as file, CaptureQueriesContext(connection) as queries:
            file.read()
            return len(queries)

    assert await site.run(read) == 0


async def test_a_copy_of_a_payload_keeps_its_name_and_type(shipped, site: Site):
    def copy() -> None:
        first = deliver(DATA, name="scan.tif", content_type="image/x-own")
        second = deliver(first)
        assert (second.name, second.content_type, second.sha256) == ("scan.tif", "image/x-own", first.sha256)
        first.discard()
        with second.open() as file:
            assert file.read() == DATA

    await site.run(copy)
