"""A port that cannot be used is found before anything is started."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from delivery.errors import UsageError
from delivery.management.commands.up import check_port
from tests.launch.live import manage


def test_taken_port_is_one_line_that_names_the_variable(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = manage("up", f"--var={tmp_path / 'var'}", PORT=str(port))
    assert answer.returncode == 1
    [line] = answer.stderr.splitlines()
    assert f"port {port} cannot be used" in line
    assert "PORT=" in line
    assert not (tmp_path / "var" / "pids.json").exists()


def test_port_beyond_the_range_is_refused() -> None:
    with pytest.raises(UsageError, match="no port"):
        check_port(65_536)
