"""A connection that is gone leaves memory at once: nothing of it waits for Python's collector of cycles."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from delivery.auth import Refusal
from delivery.server import web_process
from delivery.server.connection import Session
from delivery.server.parts import Part


@pytest.fixture(autouse=True)
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(autouse=True)
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(sessions=set(), lookout=SimpleNamespace(leave=lambda _session: None))
    monkeypatch.setattr(web_process, "current", lambda: found)


class Socket:
    """A consumer, as far as a session sees it."""

    channel_name = "channel"

    def __init__(self) -> None:
        self.session: Session | None = None
        self.sent: list[Any] = []

    async def send_text(self, text: str) -> None:
        self.sent.append(text)

    def abandon(self) -> None:
        self.sent.append("abandoned")

    def incomplete_at(self) -> float:
        return 0.0

    async def close(self, code: int, reason: str) -> None:
        self.sent.append(code)


async def test_a_session_is_freed_when_it_ends() -> None:
    socket = Socket()
    socket.session = session = Session(socket, Refusal.MISSING)  # type: ignore[arg-type]
    session.start()
    session.spawn(session.offering.run(), "offering")
    await asyncio.sleep(0)
    session.close(1001, "going away")
    await asyncio.sleep(0.01)
    assert socket.sent == [1001]
    await session.end(1001)
    left = weakref.ref(session)
    del session
    socket.session = None
    assert left() is None


async def test_what_is_asked_of_the_database_outlives_its_session() -> None:
    async def db(function: Any) -> Any:
        return function()

    web_process.current().db = db  # type: ignore[method-assign, assignment]
    session = Session(Socket(), Refusal.MISSING)  # type: ignore[arg-type]
    asking = session.db(lambda: 42)
    left = weakref.ref(session)
    del session
    assert left() is None
    assert await asking == 42


def test_a_part_says_that_its_session_is_gone() -> None:
    class Owner:
        pass

    owner = Owner()
    part = Part(owner)  # type: ignore[arg-type]
    assert part._session is owner
    del owner
    with pytest.raises(RuntimeError, match="gone"):
        _ = part._session
