"""The directory of one stack: who holds it, which processes belong to it, and the files that outlive it.

lock             held by the launcher as long as it lives, however it ends
pids.json        {"web": [pid], "worker": [pid, ...], "redis": [pid]}, true at any moment
processes.json   the same and beat, with what is needed to recognise them after the launcher was killed
redis.url        where the embedded Valkey listens; the settings read it
passwords        of the demo's accounts
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from delivery.errors import UsageError
from delivery.launch import identity

Kind = Literal["web", "worker", "beat", "redis"]

#: Stopping goes from left to right: what asks for work first, what is asked last.
STOP_ORDER: tuple[Kind, ...] = ("web", "worker", "beat", "redis")
PUBLISHED: tuple[Kind, ...] = ("web", "worker", "redis")
STALE_GRACE_SECONDS = 10.0
OTHERS = stat.S_IRWXG | stat.S_IRWXO
#: What a stack of the reference site has in its directory. A directory with anything else is not ours to close.
STACK_FILES = frozenset(
    {"lock", "pids.json", "processes.json", "redis.url", "passwords", "valkey.sock", "secret_key"}
    | {"db.sqlite3", "db.sqlite3-wal", "db.sqlite3-shm", "db.sqlite3-journal", "payloads", "media", "static"}
)


@dataclass(frozen=True)
class StateDirectory:
    """Paths in the directory of one stack, which exists and only its owner may enter."""

    root: Path

    @classmethod
    def at(cls, root: Path) -> StateDirectory:
        """Make the directory where it is missing; close one that others may enter, where all that it holds is a stack's.

        Raises OSError where it cannot be made, and UsageError where others may enter it and that is not ours to change.
        """
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        _close(root)
        return cls(root)

    @property
    def redis_url(self) -> Path:
        return self.root / "redis.url"

    @property
    def passwords(self) -> Path:
        return self.root / "passwords"

    @property
    def variable(self) -> str:
        """How every part's environment names this directory."""
        return f"DELIVERY_VAR={self.root}"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the directory against a second launcher. Raises UsageError if one holds it already.

        The kernel lets go of the lock when this process ends, and children don't inherit it.
        """
        path = self.root / "lock"
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"{self.root} is in use by `manage.py up`, process {file.read().strip() or '?'}; "
                    "a second stack needs its own --var DIR and PORT="
                ) from None
            file.truncate()
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield


def _close(root: Path) -> None:
    """Have only its owner enter a directory: the database, keys, passwords and sockets of a stack lie in it."""
    found = root.stat()
    if found.st_uid != os.geteuid() != 0:
        raise UsageError(f"{root} belongs to another user; choose a directory of your own: --var DIR")
    if not found.st_mode & OTHERS:
        return
    if not all(path.name in STACK_FILES or path.name.startswith(".") for path in root.iterdir()):
        raise UsageError(
            f"others may enter {root} (mode {stat.S_IMODE(found.st_mode):o}), and it holds more than a stack: "
            f"choose a directory of its own, --var DIR, or close this one: chmod 700 {root}"
        )
    root.chmod(0o700)
    if root.stat().st_mode & OTHERS:
        raise UsageError(f"others may enter {root}, and its file system knows no modes: choose another --var DIR")


def write_private(path: Path, text: str) -> None:
    """Replace a file at once, readable by its owner only."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    os.replace(temporary, path)


@dataclass(frozen=True)
class Recorded:
    """A process of the stack as `processes.json` remembers it."""

    name: str
    kind: Kind
    pid: int
    mark: str


class Ledger:
    """Which processes live now: in memory, and at once in the files. Owned by the launcher's one thread."""

    def __init__(self, directory: StateDirectory) -> None:
        self._directory = directory
        self._records: list[Recorded] = []

    def begin(self) -> None:
        """Write the files of a stack that has no process yet."""
        self._write()

    def add(self, name: str, kind: Kind, pid: int) -> None:
        """Record a process that was just started. One that has ended already is not recorded."""
        if mark := identity.mark_of(pid):
            self._records.append(Recorded(name, kind, pid, mark))
            self._write()

    def remove(self, pid: int) -> None:
        """Forget a process that has ended."""
        self._records = [record for record in self._records if record.pid != pid]
        self._write()

    def _write(self) -> None:
        root = self._directory.root
        # First what the next start needs, should this one be killed between the two.
        write_private(root / "processes.json", json.dumps([asdict(r) for r in self._records], indent=1) + "\n")
        pids = {kind: [r.pid for r in self._records if r.kind == kind] for kind in PUBLISHED}
        write_private(root / "pids.json", json.dumps(pids) + "\n")


def end_stale(directory: StateDirectory) -> list[str]:
    """End what an earlier launcher that was killed left running, and return the names of it. Blocks.

    Call with the directory held. Only processes whose start is recorded, and descendants that still belong to their
    session and carry this directory in their environment, are touched.
    """
    ended = []
    for record in sorted(_recorded(directory), key=lambda r: STOP_ORDER.index(r.kind)):
        orphans = identity.session_members(record.pid, variable=directory.variable)
        if identity.mark_of(record.pid) == record.mark:
            identity.end(record.pid, record.mark, grace_seconds=STALE_GRACE_SECONDS)
            ended.append(f"{record.name} ({record.pid})")
        elif orphans and identity.mark_of(record.pid) is None:
            for pid in orphans:
                identity.send(pid, signal.SIGKILL)
            ended.append(f"{record.name}'s children ({', '.join(map(str, orphans))})")
    return ended


def _recorded(directory: StateDirectory) -> list[Recorded]:
    try:
        rows: list[dict[str, Any]] = json.loads((directory.root / "processes.json").read_text())
        return [Recorded(**row) for row in rows]
    except (FileNotFoundError, ValueError, TypeError):
        return []  # a first start, or files of another version: nothing that could be verified
