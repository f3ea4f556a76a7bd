"""Repeats what failed, once, alone: many deadlines of the protocol are short, and test files run side by side.

What passes only then counts as passed, and its first failure is printed as `FLAKY name`. What fails twice has failed.
Nothing is repeated where the run was interrupted, and no module that could not be imported.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Mapping

import pytest

from tests.harness import child, runs

FAILED = ("failed", "error")  # pytest's categories of reports


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SecondTry(config))


class SecondTry:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._flaky: dict[str, list[pytest.TestReport]] = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        result = yield
        terminal = runs.terminal_of(self._config)
        for environment, names in self._failed(terminal.stats).items():
            terminal.ensure_newline()
            terminal.write_line(f"Repeating {len(names)} failed, alone")
            passed = self._passed_of(names, dict(environment))
            for name in passed:
                self._settle(session, terminal, name, passed[name])
        return result

    def _failed(self, stats: Mapping[str, list[object]]) -> dict[runs.Environment, dict[str, str]]:
        """Return by environment the names of failed tests, and the id that each has there."""
        found: dict[runs.Environment, dict[str, str]] = defaultdict(dict)
        for category in FAILED:
            for report in stats.get(category, ()):
                if isinstance(report, pytest.TestReport):
                    found[runs.environment_of(report)][report.nodeid] = runs.id_of(report)
        return found

    def _passed_of(self, names: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, pytest.TestReport]:
        """Run tests again; return the report of each that passes."""
        files = dict.fromkeys(one.split("::")[0] for one in names.values())
        reports, _ = child.run(self._config, [*files], environment, only=[*names.values()])
        failed = {report.nodeid for report in reports if report.failed}
        passed = {report.nodeid: report for report in reports if report.when == "call" and report.passed}
        return {name: passed[one] for name, one in names.items() if one in passed and one not in failed}

    def _settle(self, session: pytest.Session, terminal: runs.Terminal, name: str, passed: pytest.TestReport) -> None:
        """Have a test count as passed."""
        stats = terminal.stats
        self._flaky[name] = []
        for category in FAILED:
            mine = [one for one in stats.get(category, ()) if isinstance(one, pytest.TestReport) and one.nodeid == name]
            self._flaky[name] += mine
            left = [one for one in stats.pop(category, ()) if one not in mine]
            if left:
                stats[category] = left  # pytest takes a category that is there for one that has something in it
        session.testsfailed -= len(self._flaky[name])
        if not any(getattr(one, "nodeid", None) == name for one in stats.get("passed", ())):
            stats.setdefault("passed", []).append(passed)

    def pytest_terminal_summary(self, terminalreporter: runs.Terminal) -> None:
        if not self._flaky:
            return
        terminalreporter.write_sep("=", "PASSED ONLY WHEN REPEATED")
        for name, reports in self._flaky.items():
            for report in reports:
                terminalreporter.write_sep("_", f"{name} ({report.when})")
                terminalreporter.write_line(report.longreprtext)
        for name in self._flaky:
            terminalreporter.write_line(f"FLAKY {name}", yellow=True)
