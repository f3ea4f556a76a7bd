"""What ours is compared with: Debian's nginx and redis-server, npm's and PyPI's tus, all below `bench/work`.

Installed once, and again when a list of versions has changed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORK = HERE / "work"
LISTS = HERE / "peers"
NODE = WORK / "node"
PYTHON = WORK / "venv" / "bin" / "python"
DEBIAN = {"nginx": "nginx-light", "redis-server": "redis-server", "curl": "curl", "node": "nodejs", "npm": "npm"}
POLICY = Path("/usr/sbin/policy-rc.d")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])  # Debian keeps nginx where only root looks


def program(name: str) -> str:
    """Return the path of an installed program. Raises RuntimeError where there is none."""
    found = shutil.which(name, path=PATH)
    if found is None:
        raise RuntimeError(f"{name} is missing: apt-get install {DEBIAN.get(name, name)}")
    return found


def everything() -> None:
    """Install what is missing. Raises RuntimeError with the command to run by hand where that fails."""
    WORK.mkdir(exist_ok=True)
    _debian([package for name, package in DEBIAN.items() if shutil.which(name, path=PATH) is None])
    _python()
    _node()


def _debian(packages: Sequence[str]) -> None:
    if not packages:
        return
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    with _no_services(enabled=not sudo):
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
            _run([*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", *command])


@contextlib.contextmanager
def _no_services(*, enabled: bool) -> Iterator[None]:
    """Have Debian's packages start no services: the programs are wanted, run by us on ports of our own."""
    ours = enabled and not POLICY.exists()
    if ours:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            POLICY.unlink(missing_ok=True)


def _python() -> None:
    wanted = LISTS / "requirements.txt"
    stamp = WORK / "requirements.stamp"
    if PYTHON.exists() and _same(wanted, stamp):
        return
    if not PYTHON.exists():
        _run([sys.executable, "-m", "venv", str(WORK / "venv")])
    _run([str(PYTHON), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", str(wanted)])
    shutil.copyfile(wanted, stamp)


def _node() -> None:
    wanted = LISTS / "package.json"
    stamp = WORK / "package.stamp"
    if _same(wanted, stamp):
        return
    NODE.mkdir(exist_ok=True)
    shutil.copyfile(wanted, NODE / "package.json")
    _run([program("npm"), "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(NODE)])
    shutil.copyfile(wanted, stamp)


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.read_bytes() == other.read_bytes()


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-400:]}")
