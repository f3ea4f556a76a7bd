"""Reports of several runs of the suite in one: which run a report is of, and how its test is called there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import pytest

Terminal: TypeAlias = "pytest.TerminalReporter"
Environment: TypeAlias = tuple[tuple[str, str], ...]


def terminal_of(config: pytest.Config) -> Terminal:
    terminal = config.pluginmanager.getplugin("terminalreporter")
    assert terminal is not None
    return terminal


def add(session: pytest.Session, report: pytest.TestReport, environment: Mapping[str, str], where: str) -> None:
    """Count a report of another run of the suite, done with `environment`, which reads as `where`."""
    report._of_run = (tuple(environment.items()), report.nodeid)  # type: ignore[attr-defined]
    report.nodeid = f"{report.nodeid} {where}"
    category, *_ = session.config.hook.pytest_report_teststatus(report=report, config=session.config)
    terminal_of(session.config).stats.setdefault(category, []).append(report)
    session.testsfailed += report.failed


def environment_of(report: pytest.TestReport) -> Environment:
    return _of_run(report)[0]


def id_of(report: pytest.TestReport) -> str:
    """Return the id by which the run that a report is of knows its test."""
    return _of_run(report)[1]


def _of_run(report: pytest.TestReport) -> tuple[Environment, str]:
    of_run: tuple[Environment, str] = getattr(report, "_of_run", ((), report.nodeid))
    return of_run
