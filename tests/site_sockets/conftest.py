"""A stack whose site has sockets of its own, and people who are logged in on it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.test import Client, modify_settings
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket

from tests.stack import Person, Site, Stack, site_of

Open = Callable[..., Awaitable[ClientConnection]]


@pytest.fixture(autouse=True)
def user_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes what belongs to the user who runs it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(scope="session")
def chat_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole stack, workers too, under the settings of a site that has sockets and a model of its own."""
    var = tmp_path_factory.mktemp("chat") / "var"
    options = ("--workers=1", "--concurrency=2")
    stack = Stack(var, *options, DJANGO_SETTINGS_MODULE="tests.site_sockets.settings", CELERY_APP="project")
    try:
        stack.wait_ready()
        yield stack
    finally:
        stack.stop()


@pytest.fixture
def site(chat_stack: Stack, django_db_blocker: Any) -> Iterator[Site]:
    """This process's Django, on that stack's state and with the site's app."""
    with (
        django_db_blocker.unblock(),
        site_of(chat_stack) as site,
        modify_settings(INSTALLED_APPS={"append": "tests.site_sockets.shelf"}),  # its fields find their storages now
    ):
        yield site


@dataclass(frozen=True)
class Member(Person):
    """Somebody who has a token and a browser session."""

    session: str


@pytest.fixture
async def alice(site: Site) -> Member:
    return await member(site)


async def member(site: Site, *groups: str) -> Member:
    person = await site.person(*groups)
    return Member(person.pk, person.token, await site.run(_session_of, person.pk))


def _session_of(pk: int) -> str:
    from django.contrib.auth.models import User

    browser = Client()
    browser.force_login(User.objects.get(pk=pk))
    return str(browser.cookies["sessionid"].value)


@pytest.fixture
async def open_own(chat_stack: Stack) -> AsyncIterator[Open]:
    """Return a function that opens one of the site's own sockets: of a member, or of nobody."""
    async with contextlib.AsyncExitStack() as sockets:

        async def open_own(path: str, who: Member | None = None) -> ClientConnection:
            return await sockets.enter_async_context(
                open_socket(
                    f"ws://127.0.0.1:{chat_stack.port}/ws/{path}/",
                    additional_headers={"Cookie": f"sessionid={who.session}"} if who else {},
                    compression=None,
                    max_size=None,
                    close_timeout=2,
                    proxy=None,
                )
            )

        yield open_own
