"""The JavaScript core does what the Python core does: the same calls, the same answers, in thousands of exchanges."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from delivery.protocol.connection import Side
from tests.browser.exchanges import Recording, record

PEER = Path(__file__).parent / "peer.mjs"
EXCHANGES = 1000  # for each side


def replay(recordings: list[Recording]) -> list[list[dict[str, Any]]]:
    """Have the JavaScript core do what was recorded; return its outcomes."""
    lines = "".join(one.line() + "\n" for one in recordings)
    done = subprocess.run(["node", str(PEER)], input=lines, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def first_difference(seed: int, expected: Recording, found: list[dict[str, Any]]) -> str:
    for number, (op, ours, theirs) in enumerate(zip(expected.ops, expected.outcomes, found, strict=True)):
        if json.loads(json.dumps(ours)) != theirs:
            return f"seed {seed}, call {number}: {json.dumps(op)}\n  Python     {json.dumps(ours)}\n  JavaScript {json.dumps(theirs)}"
    return ""


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
@pytest.mark.parametrize("side", Side)
def test_both_cores_answer_alike(side):
    recordings = [record(seed, side) for seed in range(EXCHANGES)]
    differences = [
        first_difference(seed, recording, found)
        for seed, (recording, found) in enumerate(zip(recordings, replay(recordings), strict=True))
    ]
    assert [one for one in differences if one][:3] == []


def test_the_exchanges_reach_every_call_and_most_ends():
    """Exchanges that never get anywhere would agree in anything."""
    recordings = [record(seed, side) for seed in range(200) for side in Side]
    ops = {op["op"] for one in recordings for op in one.ops}
    kinds = {kind for one in recordings for outcome in one.outcomes for kind in outcome.get("result") or () if kind}
    errors = {outcome["error"][0] for one in recordings for outcome in one.outcomes if "error" in outcome}
    assert len(ops) >= 19
    assert {"chunkKept", "completed", "acked", "rewound", "rejected", "receiverAborted", "senderAborted"} <= kinds
    assert {"UsageError", "ProtocolViolation", "MessagesLost"} <= errors
