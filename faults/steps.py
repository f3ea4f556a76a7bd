"""Steps of a worker's tasks at which it can be made to die: their names, and the plan that asks for one.

The plan is a file in the stack's directory. A trial writes it, and `doomed`, inside the workers, strikes it out at the
moment at which it kills. What the file says is agreed on under a lock, so that it happens once, whatever process gets
there. Nothing of Django here.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from billiard import current_process


@dataclass(frozen=True)
class Step:
    """A step of `task`. `times`: how often at least it is reached in a trial. `forgets`: nothing was hashed ahead."""

    task: str
    name: str
    times: int = 1
    forgets: bool = False

    def __str__(self) -> str:
        return f"{self.task}: {self.name}"


STORE = (
    Step("store", "begun", 3),
    Step("store", "before the fetch", 3),
    Step("store", "a piece of the file written", 90),
    Step("store", "the file written, no row yet", 3),
    Step("store", "the transfer locked", 3),
    Step("store", "the row written, not committed", 3),
    Step("store", "committed, nobody woken", 3),
    Step("store", "woken, not hashed yet", 2),
    Step("store", "a segment hashed, the state in hand", 2),
    Step("store", "done, the task not acked", 3),
    Step("store", "all hashed, the last segment has no row yet"),
    Step("store", "complete, not committed"),
    Step("store", "committed, nobody told"),
)
STAGE = (
    Step("stage", "begun", 5),
    Step("stage", "before the file is read", 5),
    Step("stage", "a block read", 150),
    Step("stage", "some blocks in Redis", 16),
    Step("stage", "all blocks in Redis, their checksums not", 5),
    Step("stage", "all in Redis, nobody woken", 5),
    Step("stage", "done, the task not acked", 5),
)
SEAL = (
    Step("seal", "begun"),
    Step("seal", "claimed"),
    Step("seal", "what was hashed ahead in hand"),
    Step("seal", "between two blocks", 90, forgets=True),
    Step("seal", "the digest known, nothing written"),
    Step("seal", "complete, not committed"),
    Step("seal", "committed, nobody told"),
    Step("seal", "all told"),
    Step("seal", "done"),
)
CHILD, MAIN = "pool child", "main process"


@dataclass(frozen=True)
class Struck:
    """What was killed: `pid`, at `at` (monotonic seconds)."""

    pid: int
    at: float


class Plan:
    """The plan of the stack whose state is in `var`: which process dies, at which step, the how-manieth time."""

    def __init__(self, var: Path) -> None:
        self._path = var / "doom.json"
        self._struck = var / "struck.json"

    def make(self, step: Step, victim: str, number: int) -> None:
        """Let the `number`-th process (counted from 1) that gets to `step` kill itself, or its parent."""
        self.forget()
        written = self._path.with_suffix(".new")
        written.write_text(json.dumps({"step": str(step), "forgets": step.forgets, "victim": victim, "left": number}))
        written.rename(self._path)

    def forget(self) -> None:
        self._path.unlink(missing_ok=True)
        self._struck.unlink(missing_ok=True)

    def struck(self) -> Struck | None:
        """Return what was killed, None as long as nothing was."""
        with contextlib.suppress(FileNotFoundError):
            return Struck(**json.loads(self._struck.read_text()))
        return None

    def left(self) -> int:
        """Return how often the step is still to be reached."""
        with self._open() as file:
            return 0 if file is None else int(_read(file)["left"])

    # -- inside a worker ---------------------------------------------------------------------------------------------

    def forgets(self) -> bool:
        """Return whether sealing is to find nothing hashed ahead."""
        with self._open() as file:
            return file is not None and bool(_read(file)["forgets"])

    def seals(self) -> bool:
        """Return whether the payload is to be left to sealing."""
        with self._open() as file:
            return file is not None and str(_read(file)["step"]).startswith("seal:")

    def reach(self, step: str) -> int | None:
        """Note that `step` was reached; return the process that dies now, None for none. It is written down already."""
        with self._open() as file:
            if file is None:
                return None
            plan = _read(file)
            if plan["step"] != step:
                return None
            plan["left"] -= 1
            if plan["left"]:
                os.pwrite(file, json.dumps(plan).ljust(os.fstat(file).st_size).encode(), 0)
                return None
            # Where tasks run in threads there is the main process alone.
            pid = os.getpid() if plan["victim"] == CHILD or _is_main() else os.getppid()
            self._write_struck(Struck(pid, time.monotonic()))
            self._path.unlink()
            return pid

    def _write_struck(self, struck: Struck) -> None:
        written = self._struck.with_suffix(".new")
        written.write_text(json.dumps(asdict(struck)))
        written.rename(self._struck)

    @contextlib.contextmanager
    def _open(self) -> Iterator[int | None]:
        """Give the plan's file, locked; None where there is none, or where it was struck out meanwhile."""
        try:
            file = os.open(self._path, os.O_RDWR)
        except FileNotFoundError:
            yield None
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file if os.fstat(file).st_nlink else None
        finally:
            os.close(file)


def _is_main() -> bool:
    return str(current_process().name) == "MainProcess"


def _read(file: int) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads(os.pread(file, 4096, 0))
    return plan
