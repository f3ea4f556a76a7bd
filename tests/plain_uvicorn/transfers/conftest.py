"""The shipped stack on uvicorn's own protocols, started once, with what tests/conformance has beside it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.conftest import (
    alice,
    bob,
    connect,
    every_key_has_a_ttl,
    nothing_raised_in_the_server,
    peer,
    sockets,
)
from tests.conftest import site
from tests.plain_uvicorn.conftest import PLAIN
from tests.stack import Stack

__all__ = [
    "alice",
    "bob",
    "connect",
    "every_key_has_a_ttl",
    "nothing_raised_in_the_server",
    "peer",
    "shipped",
    "site",
    "sockets",
]


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("plain") / "var", "--workers=1", "--concurrency=2", **PLAIN)
    try:
        stack.wait_ready()
        yield stack
    finally:
        stack.stop()
