"""The demo's verdict: each thing that must hold is missed when it does not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from demo.account import Account
from demo.drains import WINDOW_BYTES, Drain
from demo.leg import Leg
from demo.plan import Plan, plan
from demo.source import Copy
from demo.verdict import Verdict, judge
from rig.stack import Stack

SOURCE = Copy(67_108_864, "a" * 64)
COPIES = {"in Storage": SOURCE, "with bob": SOURCE, "with carol": SOURCE}


@pytest.fixture
def run(tmp_path) -> Plan:
    """A run in which everything went as planned."""
    run = plan(SOURCE.size, Stack(tmp_path / "var", "--workers=2"), Account())
    for leg in run.legs:
        leg.cuts_made = 2
        leg.client.status = 0
        leg.client.summary = {"closes": {"1006": 2, "1001": 1}, "resumes": 2, "received_again_bytes": 5}
    run.sender.client.summary = {"closes": {"1006": 2, "1001": 2}, "resumes": 4, "resent_bytes": 100}
    run.drains.made = [Drain("worker2", 30, WINDOW_BYTES), Drain("web", 60, 0)]
    return run


def told(run: Plan, leg: Leg, **members: object) -> None:
    leg.client.summary = leg.client.summary | members


def test_nothing_is_wrong_where_all_of_it_held(run: Plan) -> None:
    assert judge(SOURCE, COPIES, run) == []
    line = json.loads(Verdict(SOURCE, run, [], 12.34).last_line())
    assert line == {
        "ok": True,
        "size": SOURCE.size,
        "sha256": SOURCE.sha256,
        "closes": {"1001": 4, "1006": 6},
        "resumes": 8,
        "resent_bytes": 110,
        "drains": [
            {"part": "worker2", "stored": 30, "resent_bytes": WINDOW_BYTES},
            {"part": "web", "stored": 60, "resent_bytes": 0},
        ],
        "seconds": 12.3,
    }


@pytest.mark.parametrize("where", COPIES)
@pytest.mark.parametrize("found", [None, replace(SOURCE, size=1), replace(SOURCE, sha256="b" * 64)])
def test_a_copy_that_differs_is_told(run: Plan, where: str, found: Copy | None) -> None:
    [problem] = judge(SOURCE, COPIES | {where: found}, run)
    assert where in problem


def test_a_failed_client_is_told(run: Plan) -> None:
    run.recipients[0].client.status = 1
    assert judge(SOURCE, COPIES, run) == ["bob's client ended with status 1"]


def test_a_cut_that_did_not_come_is_told(run: Plan) -> None:
    run.recipients[1].cuts_made = 1
    told(run, run.recipients[1], closes={"1006": 1, "1001": 1})
    assert judge(SOURCE, COPIES, run) == ["carol was cut 1 times, expected 2"]


@pytest.mark.parametrize(
    ("closes", "problem"),
    [
        ({"1006": 3, "1001": 2}, "alice saw 1006 3 times, expected 2"),
        ({"1006": 2, "1001": 1}, "alice saw 1001 1 times, expected 2"),
        ({"1006": 2, "1001": 2, "1012": 1}, "alice saw 1012 1 times, expected 0"),
    ],
)
def test_a_close_that_nobody_caused_is_told(run: Plan, closes: dict[str, int], problem: str) -> None:
    told(run, run.sender, closes=closes)
    assert judge(SOURCE, COPIES, run) == [problem]


def test_beginning_anew_instead_of_resuming_is_told(run: Plan) -> None:
    told(run, run.recipients[0], resumes=1)
    assert judge(SOURCE, COPIES, run) == ["bob resumed 1 times after 2 cuts"]


def test_more_than_a_window_again_is_told(run: Plan) -> None:
    run.drains.made[0] = Drain("worker2", 30, WINDOW_BYTES + 1)
    [problem] = judge(SOURCE, COPIES, run)
    assert "more than a window" in problem


def test_a_shutdown_that_did_not_come_is_told(run: Plan) -> None:
    run.drains.made.pop(0)
    told(run, run.sender, closes={"1006": 2, "1001": 1})
    assert judge(SOURCE, COPIES, run) == ["the sender lived through 1 shutdowns, expected 2"]
