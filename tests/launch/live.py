"""A stack that was really started: `manage.py up` as a process of its own, in a directory of its own."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests import databases

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
#: What a developer may have set and what must not leak into the stacks of these tests.
OURS = ("DELIVERY_VAR", "REDIS_URL", "DATABASE_URL", "CELERY_BROKER_URL", "PORT", "SECRET_KEY", "DEBUG", "LOG_LEVEL")


def wait_until(look: Callable[[], T], *, what: str, seconds: float = 30.0) -> T:
    """Return what `look` returns as soon as that is true; fail after the deadline."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        time.sleep(0.02)
    return seen


def free_port() -> int:
    """Return a port that nobody listens on, from a range that no other worker of this test run looks into."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 20_000 + 1_000 * worker
    for port in random.sample(range(first, first + 1_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no port from {first} on is free")


def alive(pid: int) -> bool:
    """Say whether the process runs; one that only waits for its parent to look does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return state.stdout.strip() not in ("",) and not state.stdout.startswith("Z")


def clean_environment(**variables: str) -> dict[str, str]:
    """Return the environment of a process on the stack whose DELIVERY_VAR is given, if one is."""
    kept = {name: value for name, value in os.environ.items() if name not in OURS}
    if var := variables.get("DELIVERY_VAR"):
        kept |= databases.variables(Path(var))
    return kept | variables


def manage(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), *arguments],
        cwd=ROOT,
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class LiveStack:
    """`manage.py up` on `var` and a free port."""

    def __init__(self, var: Path, *options: str, port: int | None = None, **variables: str) -> None:
        self.var = var
        self.port = port or free_port()
        self._log = var.parent / f"up-{self.port}-{time.monotonic_ns()}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "manage.py"), "up", f"--var={var}", f"--port={self.port}", *options],
                cwd=ROOT,
                env=clean_environment() | databases.variables(var) | variables,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def wait_ready(self) -> LiveStack:
        def ready() -> bool:
            assert self.process.poll() is None, self.log()
            return "delivery is up" in self.log()

        try:
            wait_until(ready, what="stack", seconds=120)  # with a server's migrations, three at a time on two cores
        except BaseException:
            self.stop()  # nobody else will: the caller gets no stack
            raise
        return self

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def pids(self) -> dict[str, list[int]]:
        pids: dict[str, list[int]] = json.loads((self.var / "pids.json").read_text())
        return pids

    def all_pids(self) -> list[int]:
        return [process["pid"] for process in json.loads((self.var / "processes.json").read_text())]

    def wait_replaced(self, kind: str, pid: int) -> list[int]:
        """Return the pids of a kind once `pid` is gone from it and somebody else is there."""

        def replaced() -> list[int]:
            pids = self.pids()[kind]
            return pids if pids and pid not in pids else []

        return wait_until(replaced, what=f"new {kind} instead of {pid}")

    def get(self, path: str = "") -> str:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            text: str = answer.read().decode()
            return text

    def answers(self) -> bool:
        try:
            return bool(self.get())
        except OSError:
            return False

    def stop(self) -> int:
        """Send SIGTERM to the launcher and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def said(self, pattern: str) -> bool:
        return re.search(pattern, self.log(), re.MULTILINE) is not None
