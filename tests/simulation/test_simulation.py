"""Safety under any faults, and an end once they are healed: real code under a deterministic scheduler, seed by seed.

500 seeds run with the tests; `SIMULATION_SEEDS=10000 pytest tests/simulation` runs more, `SIMULATION_FROM=S` begins at
another one. A failing seed is run again exactly by `SIMULATION_FROM=S SIMULATION_SEEDS=1`.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from delivery.protocol.connection import Connection, Side
from delivery.protocol.heartbeat import Heartbeat
from delivery.protocol.loss_probe import LossProbe
from delivery.protocol.receiver import Receiver
from delivery.server.upload import UploadReceiver
from delivery.transfers import segments
from tests.simulation.run import simulate

pytestmark = pytest.mark.no_cover  # what it reaches is up to chance

FIRST = int(os.environ.get("SIMULATION_FROM", "0"))
COUNT = int(os.environ.get("SIMULATION_SEEDS", "500"))
BATCH = 25
_flush_some = UploadReceiver._flush_some
_check_place = Receiver._check_place


@pytest.mark.parametrize("first", range(FIRST, FIRST + COUNT, BATCH))
def test_all_ends_well_once_the_faults_are_healed(rows: None, first: int) -> None:
    for seed in range(first, min(first + BATCH, FIRST + COUNT)):
        outcome = simulate(seed)
        assert not outcome.problems, f"seed {seed}: {outcome.problems}\n" + "\n".join(outcome.trace[-150:])


async def _ack_what_is_only_buffered(self: UploadReceiver) -> None:
    await _flush_some(self)
    self.receiver.on_stored(min(self._gatherer.flushed, self.receiver.received))
    self._reports.changed()


def _joined_over_gaps(position: int, runs: list[segments.Run]) -> int:
    return max(position, *(sum(run) for run in runs))


def _takes_what_follows_a_gap(self: Receiver, seq: int, length: int) -> None:
    received, self.received = self.received, seq
    try:
        _check_place(self, seq, length)
    finally:
        self.received = received


def _never_looks_for_losses(self: LossProbe, senders: Any, now: float) -> bool:
    return False


def test_all_ends_well_with_clients_of_before(rows: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """They say no ping of their own, and their acks come behind the pong."""
    queue_acks, next_ping_at = Connection.queue_acks, Heartbeat._ping_at

    def reports_by_time(self: Connection, now: float, *, at_once: bool = False) -> None:
        queue_acks(self, now, at_once=at_once and self.side is Side.SERVER)

    monkeypatch.setattr(Connection, "queue_acks", reports_by_time)
    monkeypatch.setattr(Heartbeat, "_ping_at", lambda self: next_ping_at(self) if self._server else float("inf"))
    for seed in range(BATCH):
        outcome = simulate(seed)
        assert not outcome.problems, f"seed {seed}: {outcome.problems}\n" + "\n".join(outcome.trace[-150:])


def test_all_ends_well_with_servers_of_before(rows: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their acks come behind the pong, too."""
    queue_acks = Connection.queue_acks

    def reports_by_time(self: Connection, now: float, *, at_once: bool = False) -> None:
        queue_acks(self, now, at_once=at_once and self.side is Side.CLIENT)

    monkeypatch.setattr(Connection, "queue_acks", reports_by_time)
    for seed in range(BATCH):
        outcome = simulate(seed)
        assert not outcome.problems, f"seed {seed}: {outcome.problems}\n" + "\n".join(outcome.trace[-150:])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a world that is left unfinished
@pytest.mark.parametrize(
    ("owner", "name", "broken", "seeds"),
    [
        (UploadReceiver, "_flush_some", _ack_what_is_only_buffered, range(5)),
        (segments, "_joined", _joined_over_gaps, range(5)),
        (Receiver, "_check_place", _takes_what_follows_a_gap, range(100)),
        (LossProbe, "ping_due", _never_looks_for_losses, range(100)),
    ],
    ids=["acks what is only buffered", "advances over gaps", "takes what follows a gap", "never looks for losses"],
)
def test_a_broken_promise_is_noticed(
    rows: None, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, broken: Any, seeds: range
) -> None:
    monkeypatch.setattr(owner, name, broken)
    assert any(simulate(seed).problems for seed in seeds)


def test_a_seed_replays_exactly(rows: None) -> None:
    for seed in (3, 4, 5):
        assert simulate(seed).trace == simulate(seed).trace
