"""Fixtures of the tests that want the real, shipped stack, started once, by the first test that asks for it; or a Valkey."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings
from django.test import override_settings

from delivery.buffer import pool
from delivery.launch.valkey import Valkey
from tests import databases
from tests.launch.live import wait_until
from tests.stack import Site, Stack, WebProcess, site_of


@pytest.fixture(scope="session", autouse=True)
def _databases_of_stacks() -> Iterator[None]:
    yield
    databases.drop_all()


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of one web process and one worker that does two tasks at a time. No test may leave it damaged."""
    stack = Stack(tmp_path_factory.mktemp("shipped") / "var", "--workers=1", "--concurrency=2")
    try:
        stack.wait_ready()
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="session")
def quick(shipped: Stack) -> Iterator[WebProcess]:
    """A second web process on the same state, with a short heartbeat and small limits."""
    process = WebProcess(shipped, "tests.quick_settings")
    try:
        yield process
    finally:
        process.stop()


@pytest.fixture
def site(shipped: Stack, django_db_blocker: pytest.FixtureRequest) -> Iterator[Site]:
    """This process's Django, on the shipped stack's state."""
    with django_db_blocker.unblock(), site_of(shipped) as site:  # type: ignore[attr-defined]
        yield site


@pytest.fixture
def valkey() -> Iterator[None]:
    """Start a Valkey, and let the buffer use it."""
    # Not pytest's directory: a socket's path is short.
    with tempfile.TemporaryDirectory() as directory:
        server = Valkey(socket=Path(directory) / "valkey.sock", directory=Path(directory))
        process = subprocess.Popen(server.command(), stdout=subprocess.DEVNULL)
        try:
            with override_settings(DELIVERY={**settings.DELIVERY, "REDIS_URL": server.url}):
                wait_until(pool.answers, what="Valkey")
                yield
                pool.client().connection_pool.disconnect()
        finally:
            process.kill()
            process.wait()
