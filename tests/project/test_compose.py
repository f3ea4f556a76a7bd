"""docker-compose.yml: refuses to start without a password, and its health check agrees with the site's own settings."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.live import ROOT, clean_environment, free_port, wait_until

FILE = (ROOT / "docker-compose.yml").read_text()


def config(**variables: str) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("docker-compose")
    if tool is None:
        pytest.skip("no docker-compose here")
    kept = {name: value for name, value in os.environ.items() if name != "POSTGRES_PASSWORD"}
    return subprocess.run(
        [tool, "--file", str(ROOT / "docker-compose.yml"), "config"],
        env=kept | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_password_has_a_default() -> None:
    used = re.findall(r"\$\{POSTGRES_PASSWORD(.*?)\}", FILE)
    assert len(used) == 2
    assert all(rest.startswith(":?set it to ") for rest in used)


def test_compose_reads_it_and_names_the_password() -> None:
    for variables in ({}, {"POSTGRES_PASSWORD": ""}):
        done = config(**variables)
        assert done.returncode != 0
        assert "POSTGRES_PASSWORD" in done.stderr
        assert "set it to letters and digits" in done.stderr
    done = config(POSTGRES_PASSWORD="s3cret", ALLOWED_HOSTS="example.org")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ALLOWED_HOSTS: example.org") == 4


def health_check() -> list[str]:
    """Return the command of the health check, with this Python."""
    (test,) = re.findall(r"test: (\[.*healthcheck.*\])", FILE)
    kind, python, *arguments = json.loads(test)
    assert (kind, python) == ("CMD", "python")
    return [sys.executable, *arguments]


def healthy(port: int, hosts: str) -> bool:
    variables = clean_environment(PORT=str(port), ALLOWED_HOSTS=hosts)
    return subprocess.run(health_check(), cwd=ROOT, env=variables, capture_output=True, check=False).returncode == 0


@pytest.fixture(params=["example.org", ".example.org, example.net", "*", "localhost,127.0.0.1"])
def web(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[int, str, Path]]:
    """A web process as Compose starts it: its port, its ALLOWED_HOSTS, what it says."""
    port, hosts, log = free_port(), str(request.param), tmp_path / "log"
    variables = clean_environment(
        DELIVERY_VAR=str(tmp_path / "var"), ALLOWED_HOSTS=hosts, TLS_PROXY="1", REDIS_URL="redis://127.0.0.1:1/0"
    )
    command = [sys.executable, "manage.py", "delivery_web", "--host", "0.0.0.0", "--port", str(port)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=file, stderr=file)
    try:
        wait_until(lambda: "Uvicorn running" in log.read_text(), what="web process")
        yield port, hosts, log
    finally:
        process.terminate()
        process.wait(30)


def test_the_health_check_survives_allowed_hosts(web: tuple[int, str, Path]) -> None:
    port, hosts, log = web
    assert healthy(port, hosts)
    assert "DisallowedHost" not in log.read_text()


def test_it_finds_who_does_not_answer() -> None:
    assert not healthy(free_port(), "localhost")
