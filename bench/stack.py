"""Ours: the stack as `manage.py up` starts it, in a directory of its own, and its Django side."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.children import Child, ChildFailed, environment, free_port, wait_until
from bench.meter import Groups

READY_SECONDS = 90.0
SITE_SECONDS = 300.0


class Stack:
    """A running stack below `directory`. `site` answers what only code of the site can. Use it with `with`.

    `options` follow `manage.py up`; `variables` go into its environment.
    """

    def __init__(self, directory: Path, *options: str, **variables: str) -> None:
        self.directory = directory
        self.var = directory / "var"
        self.port = free_port()
        self._options = options
        # The site's Celery app is `project`, whichever settings it runs under.
        self._variables = {"DJANGO_SETTINGS_MODULE": "project.settings", "CELERY_APP": "project"} | variables
        self._log = directory / "stack.log"
        self._child: Child | None = None
        self._site: Child | None = None

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/delivery/"

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        up = [sys.executable, "manage.py", "up", f"--var={self.var}", f"--port={self.port}", *self._options]
        # Its standard output is a pipe that nobody reads: everything goes into the log.
        command = ["/bin/sh", "-c", 'exec "$@" >>"$0" 2>&1', str(self._log), *up]
        self._child = Child(command, log=self._log, variables=environment(**self._variables))
        try:
            wait_until(self._ready, READY_SECONDS, "the stack")
            self._site = Child(
                [sys.executable, "-m", "bench.site"],
                log=self._log,
                variables=environment(**self._variables, DELIVERY_VAR=str(self.var)),
            )
            self._site.hear()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _ready(self) -> bool:
        if self._child is None or not self._child.running:
            raise ChildFailed(f"the stack ended while starting: {self._log.read_text(errors='replace')[-600:]}")
        return "delivery is up" in self._log.read_text(errors="replace")

    def _stop(self) -> None:
        if self._site is not None:
            self._site.stop()
        if self._child is not None:
            self._child.stop()
            for pid in self.parts().values():  # sessions of their own: gone already, unless `up` was killed
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)

    def parts(self) -> dict[str, int]:
        """Return the processes of the stack by name: redis, web, worker1, ..., beat."""
        try:
            found = json.loads((self.var / "processes.json").read_text())
        except (OSError, ValueError):
            return {}
        return {process["name"]: process["pid"] for process in found}

    def servers(self) -> Groups:
        """Return the processes whose cost counts, as groups for `meter`."""
        return {name: pid for name, pid in self.parts().items() if name != "beat"}

    # -- its site ----------------------------------------------------------------------------------------------------

    def ask(self, what: str, **arguments: Any) -> Any:
        """Have the site do one of the functions of `bench.site`. Raises ChildFailed where that raises."""
        if self._site is None:
            raise ChildFailed("the stack is not up")
        answer = self._site.ask({"do": what, **arguments}, SITE_SECONDS)
        if "error" in answer:
            raise ChildFailed(f"{what}: {answer['error']}")
        return answer["value"]

    def tokens(self, count: int) -> list[str]:
        """Return the logins of users `bench0` to `bench<count - 1>`, made where they are missing."""
        return list(self.ask("tokens", count=count))

    def digest(self, payload: str) -> str:
        """Read a payload back from Storage, and return its SHA-256."""
        return str(self.ask("digest", payload=payload))

    def deliver(self, path: Path, to: list[str]) -> str:
        """Have code of the site deliver a file; return the payload's id once it is offered."""
        return str(self.ask("deliver", path=str(path), to=to))

    def drop(self, payload: str) -> None:
        """Remove a payload and its files."""
        self.ask("drop", payload=payload)
