"""What the faults' own tools do is what their names say: a plan that strikes once, steps that are there."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from faults import doomed, steps
from faults.people import Move
from faults.steps import CHILD, MAIN, SEAL, STAGE, STORE, Plan
from rig.environment import ROOT


def test_a_plan_strikes_once_at_the_time_that_it_names(tmp_path: Path) -> None:
    plan, step = Plan(tmp_path), STORE[0]
    plan.make(step, CHILD, 2)
    assert plan.reach(str(STORE[1])) is None
    assert plan.reach(str(step)) is None
    assert plan.left() == 1
    assert plan.struck() is None
    assert plan.reach(str(step)) == os.getpid()
    assert (struck := plan.struck()) is not None
    assert struck.pid == os.getpid()
    assert plan.reach(str(step)) is None


@pytest.mark.parametrize("main", [True, False], ids=["in threads", "in children"])
def test_the_main_process_is_whoever_runs_tasks_or_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, main: bool
) -> None:
    monkeypatch.setattr(steps, "_is_main", lambda: main)
    plan = Plan(tmp_path)
    plan.make(STORE[0], MAIN, 1)
    assert plan.reach(str(STORE[0])) == (os.getpid() if main else os.getppid())


def test_every_step_is_put_into_the_workers() -> None:
    source = (ROOT / "faults" / "doomed.py").read_text()
    assert doomed.app.main == "project"
    for step in (*STORE, *STAGE, *SEAL):
        assert re.search(f'"{re.escape(step.name)}"', source), step


def test_a_transfer_that_moves_and_then_stands_still_is_seen() -> None:
    move = Move("recipient", "big.bin", 40, began=0.0, ended=60.0)
    move.moves = [(1.0, 10), (10.5, 20), (11.0, 30), (30.0, 30), (56.0, 40)]
    assert move.moved_after(10.0) == 10.5
    assert move.longest_stop(10.0) == 45.0
    assert move.longest_stop(60.0) == 0.0
