"""The whole stack, as `manage.py up` starts it: on a free port, in a directory of its own, its log in a file there."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

from demo.ending import end_process, to_the_end

ROOT = Path(__file__).resolve().parent.parent
WORKERS = 2
READY_SECONDS = 90.0
STOP_SECONDS = 75.0  # the graces of all parts, one after the other
POLL_SECONDS = 0.05
#: What the caller may have set for a stack of its own, and must not lead ours to its database or Redis.
FOREIGN = ("DELIVERY_", "REDIS_", "DATABASE_", "CELERY_")
FOREIGN_NAMES = ("PORT", "SECRET_KEY", "DEBUG", "LOG_LEVEL", "ALLOWED_HOSTS", "DJANGO_SETTINGS_MODULE")


class DemoFailed(Exception):
    """The demo cannot go on; the message says why, in one line."""


def own_environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without what configures another stack, and with `variables`."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(FOREIGN) and name not in FOREIGN_NAMES
    }
    return kept | variables


class Stack:
    """`manage.py up` with two workers in `directory`. `async with`: up on entering, gone on leaving."""

    def __init__(self, directory: Path) -> None:
        self.var = directory / "var"
        self.port = _free_port()
        self._log = directory / "up.log"
        self._process: asyncio.subprocess.Process | None = None

    @property
    def arguments(self) -> tuple[str, ...]:
        """What follows `manage.py`."""
        return ("up", f"--var={self.var}", f"--port={self.port}", f"--workers={WORKERS}")

    async def __aenter__(self) -> Self:
        """Raises DemoFailed where the stack does not come up."""
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(ROOT / "manage.py"),
                *self.arguments,
                cwd=ROOT,
                env=own_environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demo, which ends everything in order
            )
        try:
            async with asyncio.timeout(READY_SECONDS):
                while "delivery is up" not in self.log():
                    if self._process.returncode is not None:
                        raise DemoFailed(f"the stack ended with status {self._process.returncode} while starting")
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            await self._stop()
            raise DemoFailed(f"the stack is not up after {READY_SECONDS:.0f} s") from None
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    def pid(self, name: str) -> int | None:
        """Return the process of the part that is called so (web, worker1, worker2); None while there is none."""
        try:
            processes = json.loads((self.var / "processes.json").read_text())
        except (OSError, ValueError):
            return None
        return next((process["pid"] for process in processes if process["name"] == name), None)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def last_lines(self, count: int) -> list[str]:
        """Return the end of the log."""
        with self._log.open(errors="replace") as log:
            return [line.rstrip() for line in deque(log, count)]

    async def _stop(self) -> None:
        """End every part; told by SIGTERM, hurried by a second one, killed if even that does not help."""
        if self._process is not None:
            signals = (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL)
            await to_the_end(end_process(self._process, *signals, grace_seconds=STOP_SECONDS))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
