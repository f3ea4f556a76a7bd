"""The shipped commands as single processes, started and stopped by a test: nobody starts them again behind its back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from delivery.launch import valkey
from delivery.launch.state import StateDirectory
from tests import databases
from tests.launch.live import ROOT, clean_environment, free_port, wait_until

WEB_GRACE_SECONDS = 15.0  # DRAIN_GRACE and what uvicorn waits after it
WORKER_GRACE_SECONDS = 30.0  # what `manage.py up` gives it
READY = {"web": "Uvicorn running", "worker": " ready.", "redis": ""}


class Process:
    """One process of a rig, in a process group of its own."""

    def __init__(self, kind: str, log: Path, command: list[str], environment: dict[str, str]) -> None:
        self.kind = kind
        self._log = log
        with log.open("wb") as file:
            self.popen = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
            )

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def says(self, words: str, *, seconds: float = 30.0) -> None:
        """Wait until it has said something."""

        def said() -> bool:
            assert self.popen.poll() is None, self.log()
            return words in self.log()

        wait_until(said, what=f"{words!r} of {self.kind}", seconds=seconds)

    def wait_ready(self) -> None:
        self.says(READY[self.kind])

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    async def ends(self, *, within: float) -> tuple[int, float]:
        """Wait for its end; return its exit status and how long that took, in seconds."""
        began = time.monotonic()
        while (status := self.popen.poll()) is None:
            assert time.monotonic() - began < within, f"{self.kind} lives after {within} s:\n{self.log()[-3000:]}"
            await asyncio.sleep(0.02)
        return status, time.monotonic() - began

    def kill(self) -> None:
        """SIGKILL it and what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


class Rig:
    """A site's state and its processes. Has what `tests.stack.site_of` needs of a stack."""

    def __init__(self, var: Path, template: Path, **variables: str) -> None:
        shutil.copytree(template, var)
        databases.variables(var, template=template)
        self.var = var
        self.port = free_port()
        self._server = valkey.prepare(StateDirectory.at(var))
        self._variables = {"DELIVERY_VAR": str(var), "REDIS_URL": self._server.url, "PYTHONUNBUFFERED": "1"} | variables
        self._processes: list[Process] = []
        self.redis = self._start("redis", list(self._server.command()))

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/delivery/"

    @property
    def redis_url(self) -> str:
        return self._server.url

    @property
    def payload_folder(self) -> Path:
        return self.var / "payloads"

    @property
    def environment(self) -> dict[str, str]:
        return clean_environment(**self._variables)

    def _start(self, kind: str, command: list[str]) -> Process:
        log = self.var / f"{kind}-{len(self._processes)}.log"
        process = Process(kind, log, command, self.environment)
        self._processes.append(process)
        return process

    def start_redis(self) -> None:
        """Start Redis again, empty, where it was."""
        self.redis = self._start("redis", list(self._server.command()))

    def wait_redis(self) -> None:
        wait_until(self._redis_answers, what="Redis", seconds=10)

    def _redis_answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self._server.socket))
                probe.sendall(b"PING\r\n")
                return probe.recv(16) == b"+PONG\r\n"
            except OSError:
                return False

    def web(self) -> Process:
        """Start a web process on the rig's port."""
        return self._start("web", self.manage("delivery_web", f"--port={self.port}"))

    def worker(self, name: str = "worker", *options: str) -> Process:
        """Start a worker with two tasks at a time."""
        return self._start("worker", self.manage("delivery_worker", f"--name={name}", *options))

    def command(self, *command: str) -> Process:
        """Start something else that says it is ready as a worker does."""
        return self._start("worker", [sys.executable, *command])

    def manage(self, *arguments: str) -> list[str]:
        return [sys.executable, str(ROOT / "manage.py"), *arguments]

    def celery(self, *arguments: str) -> None:
        """Run a command of Celery's against the rig's broker."""
        command = [sys.executable, "-m", "celery", "-A", "project", *arguments]
        subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, timeout=30, check=False)

    def close(self) -> None:
        for process in reversed(self._processes):
            process.kill()
        valkey.remove_temporary(StateDirectory.at(self.var))
        shutil.rmtree(self.var, ignore_errors=True)


def make_template(var: Path, **variables: str) -> Path:
    """Return a directory with a migrated database and a secret key, to be copied for each rig."""
    var.mkdir()
    subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), "migrate", "--verbosity=0"],
        cwd=ROOT,
        env=clean_environment(DELIVERY_VAR=str(var), **variables),
        check=True,
    )
    return var


NewRig = Callable[..., Rig]


@contextlib.contextmanager
def rigs(folder: Path, template: Path) -> Iterator[NewRig]:
    """Give a function that makes rigs; they are ended on leaving."""
    made: list[Rig] = []

    def new(**variables: str) -> Rig:
        rig = Rig(folder / f"rig{len(made)}", template, **variables)
        made.append(rig)
        rig.wait_redis()
        return rig

    try:
        yield new
    finally:
        for rig in made:
            rig.close()
