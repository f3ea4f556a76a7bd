"""The pinned lists name what the published extras ask for: what runs apart from what tests."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def _names(lines: list[str]) -> set[str]:
    """Return the normalised names of requirements (PEP 503)."""
    found = (re.match(r"[A-Za-z0-9._-]+", line.strip()) for line in lines)
    return {re.sub(r"[-_.]+", "-", match.group()).lower() for match in found if match}


def _listed(name: str) -> list[str]:
    return [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith(("#", "-"))]


def test_what_runs_has_everything_that_the_extras_ask_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [line for extra in project["optional-dependencies"].values() for line in extra] + project["dependencies"]
    assert _names(asked) - _names(_listed("requirements-run.txt")) == set()


def test_what_tests_completes_what_runs() -> None:
    assert "-r requirements-run.txt" in (ROOT / "requirements.txt").read_text().splitlines()
    assert _names(_listed("requirements.txt")) & _names(_listed("requirements-run.txt")) == set()
    assert "pytest" in _names(_listed("requirements.txt"))


def test_everything_is_pinned() -> None:
    for line in [*_listed("requirements-run.txt"), *_listed("requirements.txt")]:
        assert "==" in line, line
