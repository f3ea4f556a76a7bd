"""The distribution as pip makes and installs it: built from this tree, each extra in an empty environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.launch.live import ROOT

UNREACHABLE = "pip reaches no package index from here"


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Run a command outside of this environment; return what it said. Its exit status must be 0."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}"
    return done.stdout


def environment(**variables: str) -> dict[str, str]:
    """Return what a newcomer's shell has: nothing of this project, nor of the environment that runs the tests."""
    foreign = (
        "DJANGO_",
        "DELIVERY_",
        "CELERY_",
        "PYTHON",
        "PYTEST_",
        "COV_",
        "VIRTUAL_ENV",
        "REDIS_URL",
        "DATABASE_URL",
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | variables


@dataclass(frozen=True)
class Installed:
    """A virtual environment that one extra was installed into, and nothing else."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def path(self) -> str:
        """What PATH is where the environment is active."""
        return f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of this tree, which wants a setuptools from the package index."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    probe = subprocess.run([*pip, "download", "--quiet", "--no-deps", "setuptools>=77"], cwd=folder, check=False)
    if probe.returncode != 0:
        pytest.skip(UNREACHABLE)
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "made", ROOT, cwd=folder)
    (made,) = (folder / "made").glob("*.whl")
    return made


def install(wheel: Path, extra: str, folder: Path) -> Installed:
    run(sys.executable, "-m", "venv", folder, cwd=wheel.parent)
    installed = Installed(folder)
    wanted = f"{wheel}[{extra}]" if extra else str(wheel)
    run(installed.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wanted, cwd=folder)
    return installed


@pytest.fixture(scope="session")
def server(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(wheel, "server", tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="session")
def client(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(wheel, "client", tmp_path_factory.mktemp("client"))
