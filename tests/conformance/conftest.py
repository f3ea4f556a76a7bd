"""What every conformance test has: the running server, people, and a look at Redis afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from tests.conformance.peer import Peer
from tests.stack import Person, Site, Stack

Connect = Callable[..., Awaitable[Peer]]


@pytest.fixture(autouse=True)
def every_key_has_a_ttl(shipped: Stack) -> Iterator[None]:
    """Fail a test that leaves a key in Redis for ever."""
    yield
    assert shipped.keys_without_ttl() == []


@pytest.fixture(autouse=True)
def nothing_raised_in_the_server(request: pytest.FixtureRequest, shipped: Stack) -> Iterator[None]:
    """Fail a test that makes any part of the stack log a traceback."""
    logs = [shipped.log, *([request.getfixturevalue("quick").log] if "quick" in request.fixturenames else [])]
    before = [len(log()) for log in logs]
    yield
    said = "".join(log()[start:] for log, start in zip(logs, before, strict=True))
    # uvicorn itself logs one for text that is not UTF-8.
    assert "Traceback" not in said or "Invalid UTF-8 sequence" in said, said


@pytest.fixture
async def sockets(shipped: Stack) -> AsyncIterator[contextlib.AsyncExitStack]:
    """What is entered here is left, sockets closed, when the test ends."""
    async with contextlib.AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def connect(shipped: Stack, site: Site, sockets: contextlib.AsyncExitStack) -> Connect:
    """Return a function that opens a socket of a person and says hello. `hello=False`: only opens it.

    `answers=False`: it leaves the server's pings unanswered, for the test to hear.
    """

    async def connect(
        person: Person, *, url: str = "", hello: bool = True, answers: bool = True, **members: Any
    ) -> Peer:
        opening = Peer.open(url or shipped.ws_url, token=person.token, answers=answers)
        peer = await sockets.enter_async_context(opening)
        if hello:
            await peer.hello(**members)
        return peer

    return connect


@pytest.fixture
async def alice(site: Site) -> Person:
    """A new user: nothing waits for her."""
    return await site.person()


@pytest.fixture
async def bob(site: Site) -> Person:
    return await site.person()


@pytest.fixture
async def peer(connect: Connect, alice: Person) -> Peer:
    """A welcomed connection of Alice."""
    return await connect(alice)
