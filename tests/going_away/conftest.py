"""Fixtures: a rig of its own for each test, people, sockets."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.peer import Peer
from tests.going_away.rig import Rig, make_template, rigs
from tests.stack import Person, Site, site_of

Connect = Callable[..., Awaitable[Peer]]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_template(tmp_path_factory.mktemp("rigs") / "template")


@pytest.fixture
def rig(tmp_path: Path, template: Path) -> Iterator[Rig]:
    """A Redis and a database; web processes and workers are for the test to start."""
    with rigs(tmp_path, template) as new:
        yield new()


@pytest.fixture
def site(rig: Rig, django_db_blocker: Any) -> Iterator[Site]:
    """This process's Django, on the rig's state."""
    with django_db_blocker.unblock(), site_of(rig) as site:  # type: ignore[arg-type]
        yield site


@pytest.fixture
async def alice(site: Site) -> Person:
    return await site.person()


@pytest.fixture
async def connect(rig: Rig, alice: Person) -> AsyncIterator[Connect]:
    """Return a function that opens a socket of Alice's (or another person's) and says hello."""
    async with contextlib.AsyncExitStack() as stack:

        async def connect(person: Person = alice, **members: Any) -> Peer:
            peer = await stack.enter_async_context(Peer.open(rig.ws_url, token=person.token))
            await peer.hello(**members)
            return peer

        yield connect
