"""Runs what depends on the database on PostgreSQL too, after the rest, where a server can be started.

Its tests count, and are repeated, like the others, and are named "... on PostgreSQL". With DATABASE_URL the whole suite
runs on that server, and this part is left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator

import pytest

from rig import postgres
from tests.harness import child, runs

#: The use cases, their locks and migrations; and what begins in the site's own code. About a minute on two cores.
PART = (
    "tests/transfers",
    *(f"tests/integration/test_{name}.py" for name in ("deliver", "missing_files", "retention", "signals")),
    "tests/integration/test_side_by_side.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--postgres-part", nargs="*", default=PART, help="what to run on PostgreSQL too, after the rest")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(OnPostgres())


class OnPostgres:
    def __init__(self) -> None:
        self._server: postgres.Server | None = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        result = yield
        terminal = runs.terminal_of(session.config)
        terminal.ensure_newline()
        try:
            reason = self._start()
        except OSError as error:
            reason = str(error)
        if self._server is None:
            terminal.write_line(f"Nothing is run on PostgreSQL: {reason}")
        else:
            self._run(session, terminal, self._server)
        return result

    def _start(self) -> str:
        """Start a server, or return why there is none."""
        if os.environ.get("DATABASE_URL"):
            return "DATABASE_URL is set, and everything was run there"
        if not (reason := postgres.missing()):
            self._server = postgres.Server()
        return reason

    def _run(self, session: pytest.Session, terminal: runs.Terminal, server: postgres.Server) -> None:
        part = session.config.getoption("postgres_part")
        terminal.write_line(f"A part of the suite on {postgres.version()}")
        began = time.monotonic()
        environment = {"DATABASE_URL": server.url}
        reports, status = child.run(session.config, [*_workers(session.config), *part], environment)
        for report in reports:
            runs.add(session, report, environment, "on PostgreSQL")
        terminal.write_line(f"PostgreSQL: {time.monotonic() - began:.0f} s")
        if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            session.testsfailed += 1
            terminal.write_line(f"FAILED: pytest on PostgreSQL ended with status {status}", red=True)

    def pytest_unconfigure(self) -> None:
        if self._server is not None:
            self._server.stop()


def _workers(config: pytest.Config) -> list[str]:
    count = config.getoption("numprocesses", None)
    return [f"-n{count}", f"--dist={config.getoption('dist')}"] if count else []
