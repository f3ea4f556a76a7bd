from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from delivery.client.chunk_ceilings import Ceilings
from tests.client.proxy import Proxy
from tests.client.server import CoreServer


@pytest.fixture(autouse=True)
def user_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes what belongs to the user who runs it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
async def server() -> AsyncIterator[CoreServer]:
    server = CoreServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def proxy(server: CoreServer) -> AsyncIterator[Proxy]:
    proxy = Proxy(server.port)
    await proxy.start()
    yield proxy
    await proxy.stop()


@pytest.fixture
def ceilings(tmp_path: Path) -> Ceilings:
    return Ceilings(tmp_path / "ceilings.json")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """8 MiB and a bit, of bytes that tell where they are."""
    path = tmp_path / "scan.tif"
    path.write_bytes(os.urandom(8 * 1_048_576 + 12_345))
    return path


async def eventually(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until `condition` holds, looking often; fail after a deadline."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        await asyncio.sleep(0.005)
