"""Environments and ports that lead to no other stack of this machine."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: What the caller may have set for a stack of its own, and must not lead ours to its database or Redis.
FOREIGN = ("DELIVERY_", "REDIS_", "DATABASE_", "CELERY_", "MALLOC_")
FOREIGN_NAMES = ("PORT", "SECRET_KEY", "DEBUG", "LOG_LEVEL", "ALLOWED_HOSTS", "TLS_PROXY", "DJANGO_SETTINGS_MODULE")
#: Below the ports that the kernel gives to outgoing connections, which could take one before it is listened on.
FIRST_PORT, PORTS = 19_000, 1_000
TRIES = 100


def own_environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without what configures another stack, and with `variables`."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(FOREIGN) and name not in FOREIGN_NAMES
    }
    return kept | variables


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on. Workers of a parallel test run draw from ranges of their own.

    Raises RuntimeError where a whole range is taken.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    first = FIRST_PORT + (1 + int(worker.removeprefix("gw"))) * PORTS if worker else FIRST_PORT
    for port in random.sample(range(first, first + PORTS), TRIES):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no port from {first} on is free")


def listens(port: int) -> bool:
    """Return whether something takes connections on 127.0.0.1:`port`."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
