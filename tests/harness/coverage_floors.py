"""Fails where less of the code is covered than `[tool.delivery.coverage]` in pyproject.toml asks for, in percent.

Branches count. What is measured is what the tests' own processes run: web processes and workers are not measured, since
that would slow them. Nor are tests marked `no_cover`, which take chance or millions of steps.
"""

from __future__ import annotations

import io
import tomllib
from collections.abc import Generator
from pathlib import Path

import coverage
import pytest

from tests.harness import runs

ROOM = 2.0  # percent points above a floor at which it has to be raised


def floors(root: Path) -> dict[str, float]:
    """Return patterns of files, and the percentage of them that has to be covered."""
    table: dict[str, float] = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["delivery"]["coverage"]
    return table


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(CoverageFloors())


class CoverageFloors:
    def __init__(self) -> None:
        self._lines: list[str] = []

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        result = yield  # pytest-cov combines what its workers measured
        measured = _measured(session.config)
        if measured is not None:
            for files, floor in floors(session.config.rootpath).items():
                self._check(session, measured, files, floor)
            self._lines.append(_by_package(measured, session.config.rootpath / "delivery"))
        return result

    def _check(self, session: pytest.Session, measured: coverage.Coverage, files: str, floor: float) -> None:
        table = io.StringIO()
        share = measured.report(include=[files], file=table, show_missing=True, skip_covered=True, precision=2)
        if share >= floor:
            rise = ": raise the floor in pyproject.toml" if share > floor + ROOM else ""
            self._lines.append(f"{share:.2f} % of {files} is covered, {floor:.2f} % are asked for{rise}")
        else:
            self._lines.append(f"{table.getvalue()}FAILED: {share:.2f} % of {files} is covered, not {floor:.2f} %")
            session.testsfailed += 1

    def pytest_terminal_summary(self, terminalreporter: runs.Terminal) -> None:
        if self._lines:
            terminalreporter.write_sep("=", "coverage")
            for line in self._lines:
                terminalreporter.write_line(line)


def _measured(config: pytest.Config) -> coverage.Coverage | None:
    plugin = config.pluginmanager.getplugin("_cov")
    controller = plugin.cov_controller if plugin is not None else None
    return controller.cov if controller is not None else None


def _by_package(measured: coverage.Coverage, folder: Path) -> str:
    packages = sorted(one.parent.name for one in folder.glob("*/__init__.py"))
    return ", ".join(f"{name} {_share(measured, f'{folder.name}/{name}/*'):.0f} %" for name in packages)


def _share(measured: coverage.Coverage, files: str) -> float:
    try:
        return measured.report(include=[files], file=io.StringIO())
    except coverage.exceptions.NoDataError:
        return 100.0  # a package of no lines
