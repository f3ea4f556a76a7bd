"""Transfers through real parts: the fixtures of the conformance tests, and clients as programs use them."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import delivery.client
from delivery.client.chunk_ceilings import Ceilings
from tests.conformance.conftest import alice, bob, connect, sockets
from tests.stack import Person, Site, Stack

__all__ = ["alice", "bob", "connect", "sockets"]

OpenClient = Callable[..., Awaitable[delivery.client.Client]]


@pytest.fixture(autouse=True)
def every_key_has_a_ttl(shipped: Stack) -> Any:
    """Fail a test that leaves a key in Redis for ever."""
    yield
    assert shipped.keys_without_ttl() == []


@pytest.fixture
async def open_client(site: Site, tmp_path: Path) -> AsyncIterator[OpenClient]:
    """Return a function that connects a person with the supplied client; left when the test ends."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_client(person: Person, url: str = "", **options: Any) -> delivery.client.Client:
            client = delivery.client.connect(
                url or site.stack.ws_url,
                token=person.token,
                open_timeout=30,
                ceilings=Ceilings(tmp_path / f"ceilings-{uuid.uuid4().hex}.json"),
                **options,
            )
            return await stack.enter_async_context(client)

        yield open_client
