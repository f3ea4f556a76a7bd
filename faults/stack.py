"""The shipped stack in a directory of its own: started, asked for its processes, killed in parts, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

ROOT = Path(__file__).resolve().parent.parent
FOREIGN = ("DELIVERY_", "REDIS_", "DATABASE_", "CELERY_")
FOREIGN_NAMES = ("PORT", "SECRET_KEY", "DEBUG", "LOG_LEVEL", "ALLOWED_HOSTS", "DJANGO_SETTINGS_MODULE")
READY_SECONDS = 180.0
STOP_SECONDS = 75.0
POLL_SECONDS = 0.02
KEY_PATTERN = "delivery:*"


class FaultsError(Exception):
    """The runner itself cannot go on; the message says why."""


def own_environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without what configures another stack, and with `variables`."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(FOREIGN) and name not in FOREIGN_NAMES
    }
    return kept | variables


async def until(look: Callable[[], Any], *, what: str, seconds: float) -> Any:
    """Return what `look` returns as soon as that is true. Raises `TimeoutError` that names `what`."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} within {seconds:g} s")
        await asyncio.sleep(POLL_SECONDS)
    return seen


class Stack:
    """`manage.py up` on `folder`/var. It can be stopped and started again on the same state."""

    def __init__(self, folder: Path, *, workers: int = 2) -> None:
        self.var = folder / "var"
        self.port = free_port()
        self.starts = 0
        self._folder = folder
        self._workers = workers
        self._pool = ""
        self._variables: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/delivery/"

    @property
    def log_path(self) -> Path:
        return self._folder / f"up-{self.starts}.log"

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    async def start(self, *, pool: str, **variables: str) -> None:
        """Bring it up with `variables` in its environment. `pool`: of its workers. Raises `FaultsError`."""
        self.starts += 1
        self._pool, self._variables = pool, variables
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, str(ROOT / "manage.py"), "up"),
                    *(f"--var={self.var}", f"--port={self.port}", f"--workers={self._workers}"),
                    f"--pool={pool}",
                ],
                cwd=ROOT,
                env=own_environment(**variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        process = self._process
        try:
            await until(
                lambda: "delivery is up" in self.log() or process.poll() is not None,
                what="stack",
                seconds=READY_SECONDS,
            )
        except BaseException:
            await self.stop()
            raise
        if process.poll() is not None:
            raise FaultsError(f"the stack ended with status {process.returncode}: {self.log()[-2000:]}")

    async def stop(self) -> None:
        """End it: told by SIGTERM, killed after a while."""
        if self._process is None:
            return
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is not None:
                break
            self._process.send_signal(number)
            with contextlib.suppress(TimeoutError):
                await until(
                    lambda: self._process is None or self._process.poll() is not None, what="end", seconds=STOP_SECONDS
                )
        self._process = None

    async def restart(self, *, pool: str, **variables: str) -> None:
        """Stop it and start it with another `pool` or `variables`, where it does not run with these already."""
        if self._process is None or (pool, variables) != (self._pool, self._variables):
            await self.stop()
            await self.start(pool=pool, **variables)

    # -- processes ---------------------------------------------------------------------------------------------------

    def processes(self) -> dict[str, int]:
        """Return the parts' main processes by name: web, worker1, worker2, beat, redis."""
        try:
            rows = json.loads((self.var / "processes.json").read_text())
        except (OSError, ValueError):
            return {}
        return {row["name"]: row["pid"] for row in rows}

    def pid(self, name: str) -> int:
        """Return the process of a part. Raises `FaultsError` where there is none now."""
        try:
            return self.processes()[name]
        except KeyError:
            raise FaultsError(f"there is no {name}") from None

    def workers(self) -> list[str]:
        """Return the names of the workers."""
        return [f"worker{number}" for number in range(1, self._workers + 1)]

    def children(self, name: str) -> list[int]:
        """Return the child processes of a part: a worker's pool."""
        return children_of(self.pid(name))

    def writers(self) -> list[int]:
        """Return the processes of all workers that run tasks: the children of their pools, or they themselves."""
        return [pid for name in self.workers() for pid in self.children(name) or [self.pid(name)]]

    def owner_of(self, port: int, to: int) -> str:
        """Return which kind of part holds the connection from `port` to the port `to` of this machine, else "other"."""
        inode = _socket_of(port, to)
        for name, pid in self.processes().items():
            if any(_holds(one, inode) for one in (pid, *children_of(pid))):
                return name.rstrip("0123456789")
        return "other"

    async def replaced(self, name: str, pid: int, *, seconds: float = 60.0) -> int:
        """Return the process that runs a part once it is another one than `pid`."""
        return int(await until(lambda: self._other(name, pid), what=f"new {name}", seconds=seconds))

    def _other(self, name: str, pid: int) -> int:
        found = self.processes().get(name, pid)
        return 0 if found == pid else found

    async def answers(self, *, seconds: float = 60.0) -> None:
        """Return once the web process takes connections."""
        await until(self._takes_connections, what="answer of the web process", seconds=seconds)

    def _takes_connections(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(0.5)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    # -- Redis -------------------------------------------------------------------------------------------------------

    @property
    def redis_url(self) -> str:
        return (self.var / "redis.url").read_text().strip()

    @contextlib.contextmanager
    def redis(self) -> Any:
        """Give a client of the buffer's database."""
        client = redis.Redis.from_url(self.redis_url)
        try:
            yield client
        finally:
            client.close()

    def keys(self, pattern: str = KEY_PATTERN) -> list[bytes]:
        with self.redis() as client:
            return list(client.scan_iter(pattern, count=1000))

    def keys_without_ttl(self) -> list[str]:
        """Return every key of ours that would stay for ever."""
        with self.redis() as client:
            return [key.decode() for key in client.scan_iter(KEY_PATTERN, count=1000) if client.ttl(key) == -1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children_of(pid: int) -> list[int]:
    """Return the live children of a process."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]


def _socket_of(port: int, to: int) -> str:
    """Return the inode of a TCP connection on 127.0.0.1, empty where there is none."""
    ends = f" 0100007F:{port:04X} 0100007F:{to:04X} "
    for line in Path("/proc/net/tcp").read_text().splitlines():
        if ends in line:
            return line.split()[9]
    return ""


def _holds(pid: int, inode: str) -> bool:
    """Return whether a process has this socket open."""
    with contextlib.suppress(OSError):
        return any(os.readlink(entry) == f"socket:[{inode}]" for entry in os.scandir(f"/proc/{pid}/fd"))
    return False


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal; a process that has gone already is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
