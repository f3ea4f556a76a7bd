"""The shipped stack: `manage.py up` on a directory of its own and a free port, from blocking and from async code.

It is started, asked for its processes, killed in parts, stopped, and started again on the same state.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import urllib.request
from collections import deque
from pathlib import Path
from typing import Self

import redis

from rig.environment import ROOT, free_port, listens, own_environment
from rig.processes import Failed, Process, children_of, kill_group, to_the_end
from rig.waiting import until, wait_until

READY = "delivery is up"
READY_SECONDS = 180.0  # with a server's migrations, several at a time on two cores
STOP_SECONDS = 75.0  # the graces of all parts, one after the other
REPLACED_SECONDS = 60.0
WORKERS = "--workers="
KEY_PATTERN = "delivery:*"


class Stack:
    """`manage.py up` on the directory `var`, with `options`, and with `variables` in its environment.

    `with` and `async with`: up on entering, gone on leaving. Names of parts: web, worker1, worker2, ..., beat, redis.
    """

    def __init__(self, var: Path, *options: str, port: int | None = None, **variables: str) -> None:
        self.var = var
        self.port = port or free_port()
        self._options = options
        self._variables = variables
        self._launcher: Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/delivery/"

    @property
    def payload_folder(self) -> Path:
        return self.var / "payloads"

    @property
    def launcher(self) -> Process:
        """The process of `manage.py up`. Raises Failed where it was never started."""
        if self._launcher is None:
            raise Failed("the stack was not started")
        return self._launcher

    @property
    def arguments(self) -> tuple[str, ...]:
        """What follows `manage.py`."""
        return ("up", f"--var={self.var}", f"--port={self.port}", *self._options)

    # -- starting and stopping ---------------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """Return the environment of `manage.py up`."""
        return own_environment(**self._variables)

    def start(self) -> Self:
        """Start it, without waiting."""
        self._launcher = Process(
            [sys.executable, ROOT / "manage.py", *self.arguments],
            log=self._new_log(),
            environment=self.environment(),
            name="the stack",
        )
        return self

    def _new_log(self) -> Path:
        self.var.parent.mkdir(parents=True, exist_ok=True)
        paths = (self.var.parent / f"up-{self.port}-{number}.log" for number in itertools.count(1))
        return next(path for path in paths if not path.exists())

    def wait_ready(self, *, seconds: float = READY_SECONDS) -> Self:
        """Wait until it is up. What does not come up is stopped, and raises Failed or TimeoutError."""
        try:
            self.launcher.says(READY, seconds=seconds)
        except BaseException:
            self.stop()  # nobody else will: the caller gets no stack
            raise
        return self

    async def until_ready(self, *, seconds: float = READY_SECONDS) -> Self:
        """As `wait_ready`, for coroutines."""
        try:
            await self.launcher.until_says(READY, seconds=seconds)
        except BaseException:
            await self.astop()
            raise
        return self

    def stop(self) -> int:
        """End it: told by SIGTERM, hurried by a second one, killed if even that does not help. Returns its exit status.

        What a launcher that was killed has left is killed as well.
        """
        status = self.launcher.stop(signal.SIGTERM, signal.SIGTERM, seconds=STOP_SECONDS)
        if status != 0:
            for pid in self.processes().values():
                kill_group(pid)
        return status

    async def astop(self) -> None:
        """As `stop`, for coroutines; goes on to the end where it is cancelled."""
        if self._launcher is not None:
            await to_the_end(asyncio.to_thread(self.stop))

    async def restart(self, *options: str, **variables: str) -> None:
        """Have it run with these options and variables: stop it and start it, where it does not already."""
        running = self._launcher is not None and self._launcher.running
        if not running or (options, variables) != (self._options, self._variables):
            await self.astop()
            self._options, self._variables = options, variables
            await self.start().until_ready()

    def __enter__(self) -> Self:
        return self.start().wait_ready()

    def __exit__(self, *error: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await self.start().until_ready()

    async def __aexit__(self, *error: object) -> None:
        await self.astop()

    # -- what it says ------------------------------------------------------------------------------------------------

    def log(self) -> str:
        """Return what all parts have said since the last start."""
        return self.launcher.log()

    def last_lines(self, count: int) -> list[str]:
        """Return the end of the log."""
        with self.launcher.log_path.open(errors="replace") as log:
            return [line.rstrip() for line in deque(log, count)]

    def get(self, path: str = "") -> str:
        """Return a page."""
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            text: str = answer.read().decode()
            return text

    def answers(self) -> bool:
        """Return whether the web process answers."""
        try:
            return bool(self.get())
        except OSError:
            return False

    async def until_listening(self, *, seconds: float = REPLACED_SECONDS) -> None:
        """Return once the web process takes connections."""
        await until(lambda: listens(self.port), what="answer of the web process", seconds=seconds)

    # -- processes ---------------------------------------------------------------------------------------------------

    def pids(self) -> dict[str, list[int]]:
        """Return the processes by kind, as `pids.json` tells sites: web, worker, redis."""
        pids: dict[str, list[int]] = json.loads((self.var / "pids.json").read_text())
        return pids

    def processes(self) -> dict[str, int]:
        """Return the main process of each part by its name; empty while there is none."""
        try:
            rows = json.loads((self.var / "processes.json").read_text())
        except (OSError, ValueError):
            return {}
        return {row["name"]: row["pid"] for row in rows}

    def pid(self, name: str) -> int:
        """Return the process of a part. Raises Failed where there is none now."""
        try:
            return self.processes()[name]
        except KeyError:
            raise Failed(f"there is no {name}") from None

    def workers(self) -> list[str]:
        """Return the names of all workers, also of one that is away for the moment."""
        (count,) = [int(one.removeprefix(WORKERS)) for one in self._options if one.startswith(WORKERS)] or [1]
        return [f"worker{number}" for number in range(1, count + 1)]

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

    def wait_replaced(self, name: str, pid: int, *, seconds: float = REPLACED_SECONDS) -> int:
        """Return the process of a part once it is another one than `pid`."""
        return wait_until(lambda: self._successor(name, pid), what=f"new {name}", seconds=seconds)

    async def until_replaced(self, name: str, pid: int, *, seconds: float = REPLACED_SECONDS) -> int:
        """As `wait_replaced`, for coroutines."""
        return await until(lambda: self._successor(name, pid), what=f"new {name}", seconds=seconds)

    def _successor(self, name: str, pid: int) -> int:
        found = self.processes().get(name, pid)
        return 0 if found == pid else found

    def kill(self, name: str) -> None:
        """SIGKILL a part with all of its processes, and wait until another one is there."""
        pid = self.pid(name)
        kill_group(pid)
        self.wait_replaced(name, pid)

    # -- Redis -------------------------------------------------------------------------------------------------------

    @property
    def redis_url(self) -> str:
        return (self.var / "redis.url").read_text().strip()

    def redis(self) -> redis.Redis:
        """Return a client of the chunk buffer's database; use it in a `with`, which closes it."""
        return redis.Redis.from_url(self.redis_url)

    def keys_without_ttl(self) -> list[str]:
        """Return every key of ours that would stay for ever."""
        with self.redis() as client:
            return [key.decode() for key in client.scan_iter(KEY_PATTERN, count=1000) if client.ttl(key) == -1]

    def flush_redis(self) -> None:
        """Empty the chunk buffer's database."""
        with self.redis() as client:
            client.flushdb()


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
