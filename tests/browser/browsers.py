"""A real browser for tests: started by Node, told what to do over a pipe (`bridge.mjs`)."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import itertools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
EXECUTABLES = {"chromium": ("chromium", "chromium-browser", "google-chrome"), "firefox": ("firefox-esr", "firefox")}
LINE_BYTES = 64 * 1024 * 1024
CALL_SECONDS = 120.0


class BrowserFailed(Exception):
    """The browser, or a script in a page, says that something went wrong."""


@functools.cache
def without_packages() -> str:
    """Return why the packages of the browser tests are not there, empty where they are. Installs them once."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "Node is not installed"
    if not (FOLDER / "node_modules" / "puppeteer-core").is_dir():
        with (FOLDER / "package-lock.json").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # test processes side by side install them once
            return _install()
    return ""


def _install() -> str:
    if (FOLDER / "node_modules" / "puppeteer-core").is_dir():
        return ""
    done = subprocess.run(
        ["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=FOLDER, capture_output=True, text=True
    )
    return f"npm ci failed: {done.stderr[-300:]}" if done.returncode else ""


def missing(kind: str) -> str:
    """Return why there is no browser of this kind here, empty where there is one."""
    return f"{kind} is not installed" if executable(kind) is None else without_packages()


def executable(kind: str) -> str | None:
    """Return the path of a browser's program, None where it is not installed."""
    return next((path for name in EXECUTABLES[kind] if (path := shutil.which(name))), None)


class Page:
    """One tab. `console`: what it said, errors that nobody caught included."""

    def __init__(self, browser: Browser, number: int) -> None:
        self.console: list[str] = []
        self._browser = browser
        self._number = number

    async def goto(self, url: str) -> int | None:
        """Open a URL; return the HTTP status."""
        status: int | None = await self.call("goto", url=url)
        return status

    async def run(self, script: str, argument: Any = None, *, seconds: float = CALL_SECONDS) -> Any:
        """Call the JavaScript function whose source is `script`; return what it, or its promise, gives.

        Raises `BrowserFailed` with what it throws.
        """
        return await self.call("run", script=script, argument=argument, seconds=seconds)

    async def until(self, script: str, argument: Any = None, *, seconds: float = 30.0) -> Any:
        """Return what the function gives as soon as that is true."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not (found := await self.run(script, argument)):
            if asyncio.get_running_loop().time() > deadline:
                raise BrowserFailed(f"not within {seconds:g} s: {script}")
            await asyncio.sleep(0.05)
        return found

    async def call(self, name: str, *, seconds: float = CALL_SECONDS, **arguments: Any) -> Any:
        return await self._browser.call(name, seconds=seconds, page=self._number, **arguments)

    async def close(self) -> None:
        await self.call("close")


class Browser:
    """A browser with a profile of its own. `async with`."""

    def __init__(self, kind: str = "chromium") -> None:
        self.kind = kind
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._pages: dict[int, Page] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Browser:
        self._process = await asyncio.create_subprocess_exec(
            *("node", str(FOLDER / "bridge.mjs"), self.kind, str(executable(self.kind))),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
        )
        ready = await asyncio.wait_for(self._line(), CALL_SECONDS)
        if "ready" not in ready:
            raise BrowserFailed("the browser did not start")
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), 15)
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def new_page(self, context: int | None = None) -> Page:
        """Open a tab, in a `context` of its own cookies where given."""
        number = await self.call("page", context=context)
        self._pages[number] = page = Page(self, number)
        return page

    async def new_context(self) -> int:
        """Make a context: pages in it share cookies and storage with each other alone."""
        number: int = await self.call("context")
        return number

    async def call(self, name: str, *, seconds: float = CALL_SECONDS, **arguments: Any) -> Any:
        if self._process is None or self._process.stdin is None:
            raise BrowserFailed("the browser is not running")
        number = next(self._numbers)
        self._waiting[number] = answer = asyncio.get_running_loop().create_future()
        self._process.stdin.write(json.dumps({"id": number, "call": name, **arguments}).encode() + b"\n")
        return await asyncio.wait_for(answer, seconds)

    async def _line(self) -> dict[str, Any]:
        if self._process is None or self._process.stdout is None:
            raise BrowserFailed("the browser is not running")
        line = await self._process.stdout.readline()
        found: dict[str, Any] = json.loads(line) if line else {}
        return found

    async def _read(self) -> None:
        while line := await self._line():
            if "console" in line:
                if line["page"] in self._pages:
                    self._pages[line["page"]].console.append(line["console"])
            else:
                self._answer(line)
        for answer in self._waiting.values():
            answer.set_exception(BrowserFailed("the browser ended"))

    def _answer(self, line: dict[str, Any]) -> None:
        answer = self._waiting.pop(line["id"])
        if answer.done():
            return
        if "error" in line:
            answer.set_exception(BrowserFailed(line["error"]))
        else:
            answer.set_result(line["result"])
