"""A real Valkey for the tests of the buffer alone."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings
from django.test import override_settings

from delivery.buffer import clients
from delivery.launch.valkey import Valkey
from tests.launch.live import wait_until


@pytest.fixture
def valkey() -> Iterator[None]:
    """Start a Valkey, and let the buffer use it."""
    # Not pytest's directory: a socket's path is short.
    with tempfile.TemporaryDirectory() as directory:
        server = Valkey(socket=Path(directory) / "valkey.sock", directory=Path(directory))
        process = subprocess.Popen(server.command(), stdout=subprocess.DEVNULL)
        try:
            with override_settings(DELIVERY={**settings.DELIVERY, "REDIS_URL": server.url}):
                wait_until(clients.answers, what="Valkey")
                yield
                clients.client().connection_pool.disconnect()
        finally:
            process.kill()
            process.wait()
