"""What a client does after each close code: the vectors, and what they cannot say."""

from __future__ import annotations

import pytest

from delivery.protocol.backoff import Closed, Plan, Recovery

from .vectors import load, name_of

SEQUENCES = load("reactions")["sequences"]


@pytest.mark.parametrize("vector", SEQUENCES, ids=name_of)
def test_reaction(vector):
    recovery = Recovery(**vector["start"])
    for number, step in enumerate(vector["steps"]):
        if progressed := step.get("progressed"):
            assert recovery.progressed(progressed["chunk_bytes"]) == progressed["remember"], f"step {number}"
            continue
        if step.get("refused"):
            plan = recovery.refused(step["random"])
        else:
            plan = recovery.closed(Closed(**step["closed"]), step["random"])
        assert plan == Plan(**step["plan"]), f"step {number}"


def test_hundreds_of_attempts_do_not_overflow():
    recovery = Recovery(chunk_size=262_144)
    waits = [recovery.refused(1.0).wait for _ in range(2_000)]
    assert waits[-1] == 10.0


@pytest.mark.parametrize("random", [0.0, 0.25, 0.999])
def test_the_wait_is_uniform_below_the_step(random):
    recovery = Recovery(chunk_size=262_144, initial=2.0)
    assert recovery.closed(Closed(1006), random).wait == random * 2.0


def test_the_chunk_size_that_was_learnt_stays():
    recovery = Recovery(chunk_size=262_144)
    recovery.closed(Closed(1009), 0.5)
    recovery.progressed()
    assert recovery.closed(Closed(1006), 0.5).chunk_size == recovery.chunk_size == 131_072
