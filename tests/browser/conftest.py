"""Fixtures: a real stack with a bare page, a browser, people who are logged in."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from rig.proxy import Proxy
from tests.browser.browsers import Browser, Page, missing
from tests.stack import Person, Site, Stack, site_of

SETTINGS = {"DJANGO_SETTINGS_MODULE": "tests.browser.settings", "CELERY_APP": "project"}
OPEN_CLIENT = """async ([options]) => {
    const module = await import("/static/delivery/index.js");
    window.states = [];
    window.incoming = [];
    window.client = new module.DeliveryClient("/ws/delivery/", options);
    window.client.on("state", (state) => window.states.push(state));
    if (options.receive) {
        window.client.on("delivery", (incoming) => window.incoming.push(incoming));
    }
}"""


@pytest.fixture(scope="session")
def browser_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if why := missing("chromium"):
        pytest.skip(why)
    stack = Stack(tmp_path_factory.mktemp("browser") / "var", "--workers=2", **SETTINGS)
    try:
        stack.wait_ready()
        yield stack
    finally:
        stack.stop()


@pytest.fixture
def browser_site(browser_stack: Stack, django_db_blocker: Any) -> Iterator[Site]:
    with django_db_blocker.unblock(), site_of(browser_stack) as site:
        yield site


@pytest.fixture
async def browser(browser_stack: Stack) -> AsyncIterator[Browser]:
    async with Browser("chromium") as browser:
        yield browser


@pytest.fixture
async def network(browser_stack: Stack) -> AsyncIterator[Proxy]:
    """The way from the browser to the web process; pages come through it too, so that both have one origin."""
    async with Proxy(browser_stack.port) as network:
        yield network


Open = Callable[..., Awaitable[Page]]


@pytest.fixture
async def open_page(browser: Browser, network: Proxy) -> AsyncIterator[Open]:
    """Return a function that opens a page of a person's, with a client in it: `client`, `states`, `incoming`."""
    pages: list[Page] = []

    async def open_page(person: Person, *, context: int | None = None, **options: Any) -> Page:
        page = await browser.new_page(await browser.new_context() if context is None else context)
        pages.append(page)
        await page.goto(f"http://127.0.0.1:{network.port}/browser/login/{person.pk}/")
        await page.run(OPEN_CLIENT, [options])
        return page

    yield open_page
    for page in pages:
        with contextlib.suppress(Exception):
            await page.close()


@pytest.fixture
async def alice(browser_site: Site) -> Person:
    return await browser_site.person()


@pytest.fixture
async def bob(browser_site: Site) -> Person:
    return await browser_site.person()
