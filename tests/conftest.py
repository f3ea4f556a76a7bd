"""Fixtures of the tests that want the real, shipped stack. It is started once, by the first test that asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.stack import Site, Stack, WebProcess, site_of


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of one web process and one worker with two children. No test may leave it damaged."""
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
