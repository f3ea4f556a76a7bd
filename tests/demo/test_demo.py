"""`python -m demo`, run as `make demo` runs it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig.environment import ROOT
from rig.processes import alive
from rig.waiting import wait_until

SIZE = 3 * 1_048_576 + 12_345  # not a whole number of chunks


class Demo:
    """A demo that was really started, with `temporary` for its temporary files."""

    def __init__(self, temporary: Path, *arguments: str) -> None:
        self.temporary = temporary
        temporary.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "demo", *arguments],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> str:
        """Wait for its end and return what it said on standard output."""
        said, self.complaints = self.process.communicate(timeout=150)
        return said

    def processes(self) -> list[int]:
        """Return those of its stack that are known by now."""
        found = self.temporary.glob("*/var/processes.json")
        return [process["pid"] for path in found for process in json.loads(path.read_text())]


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    path = tmp_path / "payload with a space.bin"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def demo(tmp_path: Path, payload: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path / "tmp", str(payload))
    try:
        yield demo
    finally:
        if demo.process.poll() is None:
            demo.process.terminate()
            demo.process.wait(60)


def test_payload_survives_cuts_and_shutdowns(demo: Demo, payload: Path) -> None:
    said = demo.end()
    assert demo.process.returncode == 0, said + demo.complaints
    summary = json.loads(said.splitlines()[-1])
    assert summary["ok"] is True
    assert summary["size"] == SIZE
    assert summary["sha256"] == hashlib.sha256(payload.read_bytes()).hexdigest()
    assert summary["closes"]["1006"] == 6
    assert summary["closes"]["1001"] == 4  # the sender for its worker, and everybody for the web process
    assert set(summary["closes"]) == {"1001", "1006"}
    assert summary["resumes"] >= 6
    assert [drain["part"][:6] for drain in summary["drains"]] == ["worker", "web"]
    assert said.count("CUT at") == 6
    assert demo.complaints == ""
    assert list(demo.temporary.iterdir()) == []


def test_ctrl_c_leaves_nothing_behind(demo: Demo) -> None:
    processes = wait_until(lambda: (pids := demo.processes()) and len(pids) >= 4 and pids, what="stack")
    demo.process.send_signal(signal.SIGINT)
    said = demo.end()
    assert demo.process.returncode == 130, said + demo.complaints
    assert not any(alive(pid) for pid in processes)
    assert list(demo.temporary.iterdir()) == []


def test_missing_file_is_told_in_one_line(tmp_path: Path) -> None:
    demo = Demo(tmp_path / "tmp", "no/such/file")
    assert demo.end() == ""
    assert demo.process.returncode == 2
    assert demo.complaints == "demo: no/such/file: no such file\n"
