"""Processes: started in a session of their own, talked to in lines of JSON, ended with all that they started."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
STOP_SECONDS = 20.0
#: What the caller may have set for a stack of its own, and must not lead ours to its database or Redis.
FOREIGN = ("DELIVERY_", "REDIS_", "DATABASE_", "CELERY_", "MALLOC_")
FOREIGN_NAMES = ("PORT", "SECRET_KEY", "DEBUG", "LOG_LEVEL", "ALLOWED_HOSTS", "DJANGO_SETTINGS_MODULE")


class ChildFailed(Exception):
    """A process ended, or did not say in time what was waited for."""


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without what configures another stack, and with `variables`."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(FOREIGN) and name not in FOREIGN_NAMES
    }
    return kept | {"PYTHONPATH": str(ROOT)} | variables


def free_port() -> int:
    """Return a port on which nobody listens at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(holds: Callable[[], bool], seconds: float, what: str, *, pause: float = 0.02) -> None:
    """Return once `holds`. Raises ChildFailed after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise ChildFailed(f"{what}: not within {seconds:g} s")
        time.sleep(pause)


def answers(port: int) -> bool:
    """Return whether something listens on 127.0.0.1:`port`."""
    with contextlib.closing(socket.socket()) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Child:
    """A process whose complaints go to the file `log`. `say` and `hear` move one JSON object a line."""

    def __init__(
        self,
        arguments: Sequence[str | Path],
        *,
        log: Path,
        variables: Mapping[str, str] | None = None,
        stop_signal: int = signal.SIGTERM,
    ) -> None:
        self.name = Path(arguments[0]).name
        self.log = log
        self._stop_signal = stop_signal
        self._rest = b""
        with log.open("ab") as complaints:
            self._process = subprocess.Popen(
                [str(argument) for argument in arguments],
                cwd=ROOT,
                env=dict(variables) if variables is not None else environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def say(self, message: Any) -> None:
        """Send one object."""
        if self._process.stdin is None:
            raise ChildFailed("it takes nothing")
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def hear(self, seconds: float = 60.0) -> Any:
        """Return the next object. Raises ChildFailed where none comes within `seconds`."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._rest:
            self._rest += self._read(deadline)
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def ask(self, message: Any, seconds: float = 60.0) -> Any:
        """Send one object, and return the answer."""
        self.say(message)
        return self.hear(seconds)

    def _read(self, deadline: float) -> bytes:
        if self._process.stdout is None:
            raise ChildFailed("it says nothing")
        descriptor = self._process.stdout.fileno()
        if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise ChildFailed(f"{self.name} says nothing; {self._last_words()}")
        piece = os.read(descriptor, 1 << 20)
        if not piece:
            self._process.wait()
            raise ChildFailed(f"{self.name} ended with status {self._process.returncode}; {self._last_words()}")
        return piece

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return f"{self.log}: {' / '.join(lines[-6:])}"

    def stop(self) -> None:
        """End it: asked first, and after a while killed with everything that is left of its session."""
        if self.running:
            self._signal(self._stop_signal)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                pass
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if number == signal.SIGKILL:
                os.killpg(self.pid, number)  # the session is ours: it was started for this process
            else:
                os.kill(self.pid, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
