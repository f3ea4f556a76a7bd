"""A pytest session in a process of its own. Its reports come back; its failures are for its parent to print.

This module is also the plugin of that process: it writes each report, a line of JSON, to the descriptor `--report-to`,
and with `--only-ids` runs no other tests than those which a file names, a line each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

import pytest

PROGRESS_ONLY = ("-qq", "--no-header", "--no-summary")


def run(
    config: pytest.Config,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    only: Sequence[str] = (),
) -> tuple[list[pytest.TestReport], int]:
    """Run pytest with `arguments`, and only the tests whose ids are in `only`, if any are; return reports and status.

    What it prints while it runs, dots, goes where our own output goes.
    """
    reader, writer = os.pipe()
    with tempfile.NamedTemporaryFile("w") as ids, os.fdopen(reader) as lines:
        ids.write("\n".join(only))
        ids.flush()
        if only:
            arguments = [*arguments, f"--only-ids={ids.name}"]
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-p", __name__, f"--report-to={writer}", *PROGRESS_ONLY, *arguments],
                cwd=config.rootpath,
                env=os.environ | environment,
                pass_fds=[writer],
            )
        finally:
            os.close(writer)
        try:
            reports = [_read(config, line) for line in lines]
            return reports, process.wait()
        finally:
            process.kill() if process.poll() is None else None
            process.wait()


def _read(config: pytest.Config, line: str) -> pytest.TestReport:
    report = config.hook.pytest_report_from_serializable(config=config, data=json.loads(line))
    assert isinstance(report, pytest.TestReport)
    return report


# -- the plugin of the child -----------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("a child of `make test`")
    group.addoption("--report-to", type=int, help="descriptor to write reports to")
    group.addoption("--only-ids", help="file with the ids of the tests to run")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if path := config.getoption("only_ids"):
        with open(path) as file:
            ids = set(file.read().split("\n"))
        items[:] = [item for item in items if item.nodeid in ids]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if _writer is not None:
        data = _writer.hook.pytest_report_to_serializable(config=_writer, report=report)
        data.pop("node", None)  # xdist's worker
        os.write(_writer.getoption("report_to"), json.dumps(data, default=str).encode() + b"\n")


_writer: pytest.Config | None = None


def pytest_configure(config: pytest.Config) -> None:
    global _writer
    if config.getoption("report_to") is not None and not hasattr(config, "workerinput"):
        _writer = config
