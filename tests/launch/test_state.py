"""The files of a stack's directory, and which processes may be ended in its name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from delivery.errors import UsageError
from delivery.launch import identity
from delivery.launch.state import Ledger, Recorded, StateDirectory, end_stale, write_private
from tests.launch.live import alive, wait_until


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory.at(tmp_path / "var")


@pytest.fixture
def sleeper(state: StateDirectory) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "DELIVERY_VAR": str(state.root)}
    with subprocess.Popen(["sleep", "600"], start_new_session=True, env=environment) as process:
        yield process
        process.kill()


def record(state: StateDirectory, **changes: object) -> None:
    row = {"name": "web", "kind": "web", "pid": 0, "mark": "", **changes}
    (state.root / "processes.json").write_text(json.dumps([row]))


def test_directory_is_private(state: StateDirectory) -> None:
    assert state.root.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_others_may_enter_is_closed(tmp_path: Path) -> None:
    """It is empty, or has what an earlier start left in it."""
    for name in ("", "db.sqlite3"):
        root = tmp_path / f"open{name}"
        root.mkdir()
        root.chmod(0o755)
        if name:
            (root / name).touch()
        StateDirectory.at(root)
        assert root.stat().st_mode & 0o777 == 0o700


def test_a_directory_with_other_files_is_refused_unless_it_is_closed(tmp_path: Path) -> None:
    root = tmp_path / "home"
    root.mkdir()
    (root / "letter.txt").touch()
    for mode in (0o755, 0o750, 0o1777):
        root.chmod(mode)
        with pytest.raises(UsageError, match=f"chmod 700 {root}"):
            StateDirectory.at(root)
        assert root.stat().st_mode & 0o7777 == mode
    root.chmod(0o700)
    assert StateDirectory.at(root).root == root


def test_a_directory_of_somebody_elses_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(UsageError, match="another user"):
        StateDirectory.at(tmp_path)


def test_pids_are_published_by_kind_without_beat(state: StateDirectory, sleeper: subprocess.Popen[bytes]) -> None:
    ledger = Ledger(state)
    ledger.begin()
    ledger.add("worker1", "worker", sleeper.pid)
    ledger.add("beat", "beat", os.getpid())
    assert json.loads((state.root / "pids.json").read_text()) == {"web": [], "worker": [sleeper.pid], "redis": []}
    ledger.remove(sleeper.pid)
    assert json.loads((state.root / "pids.json").read_text()) == {"web": [], "worker": [], "redis": []}


def test_process_that_has_ended_already_is_not_recorded(state: StateDirectory) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    ledger = Ledger(state)
    ledger.begin()
    ledger.add("web", "web", ended.pid)
    assert json.loads((state.root / "processes.json").read_text()) == []


def test_directory_is_held_by_one(state: StateDirectory) -> None:
    with state.held(), pytest.raises(UsageError, match=rf"process {os.getpid()}.*PORT="), state.held():
        pass
    with state.held():
        pass


def test_recorded_process_is_ended(state: StateDirectory, sleeper: subprocess.Popen[bytes]) -> None:
    record(state, pid=sleeper.pid, mark=identity.mark_of(sleeper.pid))
    assert end_stale(state) == [f"web ({sleeper.pid})"]
    assert sleeper.wait(5) == -signal.SIGTERM


def test_other_process_with_the_recorded_number_is_left_alone(
    state: StateDirectory, sleeper: subprocess.Popen[bytes]
) -> None:
    record(state, pid=sleeper.pid, mark="an earlier boot 1")
    assert end_stale(state) == []
    assert alive(sleeper.pid)


@pytest.mark.skipif(not identity.PROC.joinpath("self/stat").exists(), reason="reads /proc")
def test_children_of_a_recorded_process_that_was_killed_are_ended(state: StateDirectory) -> None:
    environment = {**os.environ, "DELIVERY_VAR": str(state.root)}
    leader = subprocess.Popen(
        ["sh", "-c", "sleep 600 & echo $!; wait"], start_new_session=True, env=environment, stdout=subprocess.PIPE
    )
    assert leader.stdout is not None
    with leader.stdout:
        child = int(leader.stdout.readline())
    record(state, name="worker1", kind="worker", pid=leader.pid, mark=identity.mark_of(leader.pid))
    leader.kill()
    leader.wait()
    assert end_stale(state) == [f"worker1's children ({child})"]
    wait_until(lambda: not alive(child), what="end of the child", seconds=5)


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"pid": 1}]'])
def test_unreadable_record_is_no_record(state: StateDirectory, text: str) -> None:
    (state.root / "processes.json").write_text(text)
    assert end_stale(state) == []


def test_stubborn_process_is_killed_after_its_grace() -> None:
    process = subprocess.Popen(
        ["sh", "-c", "trap '' TERM; echo up; sleep 600 & wait; wait"], start_new_session=True, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
    mark = identity.mark_of(process.pid)
    assert mark is not None
    identity.end(process.pid, mark, grace_seconds=0.2)
    assert process.wait(5) == -signal.SIGKILL


def test_mark_of_nobody_is_none() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert identity.mark_of(ended.pid) is None


def test_mark_without_proc_agrees_with_itself(sleeper: subprocess.Popen[bytes]) -> None:
    mark = identity._mark_by_ps(sleeper.pid)
    assert mark
    assert mark == identity._mark_by_ps(sleeper.pid)


def test_private_file_replaces_a_public_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_record_has_what_is_needed_to_recognise() -> None:
    assert [*Recorded.__dataclass_fields__] == ["name", "kind", "pid", "mark"]
