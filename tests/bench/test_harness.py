"""The parts that measure: rounds in turns, processes that end, memory and processor time that are seen."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bench import machine
from bench.bench import MIB, Bench, Costs, Plan, require
from bench.children import Child, ChildFailed, environment
from bench.meter import Cost, MemorySampler, tree
from bench.moving import uploading
from bench.rows import NAMES, ROWS, chosen

ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"


def child(tmp_path: Path, code: str) -> Child:
    return Child([sys.executable, "-c", code], log=tmp_path / "log")


def test_every_row_says_its_name_and_what_it_must_show() -> None:
    assert [row.NAME for row in ROWS.values()] == list(NAMES)
    assert all(row.MUST for row in ROWS.values())


def test_rows_are_chosen_by_part_of_their_name() -> None:
    assert chosen(["upload_vs"]) == ["upload_vs_nginx_put", "upload_vs_tus_node", "upload_vs_tuspyserver"]
    assert chosen([]) == list(NAMES)
    assert chosen(["nothing"]) == []


def test_ours_and_peer_are_measured_in_turns() -> None:
    calls: list[str] = []

    def ours() -> float:
        calls.append("ours")
        return 1.0

    def peer() -> float:
        calls.append("peer")
        return 2.0

    with Bench(Plan(rounds=3), lambda text: None) as bench:
        assert bench.pairs(ours, peer, warm=0, unit="s") == ([1.0] * 3, [2.0] * 3)
    first, rounds = calls[:2], calls[2:]
    assert first == ["ours", "peer"]
    assert rounds == ["ours", "peer", "peer", "ours", "ours", "peer"]


def test_quick_runs_measure_less() -> None:
    assert Plan().count() >= 5
    assert Plan(quick=True).count() < Plan().count()
    assert Plan(quick=True, rounds=7).count() == 7
    assert (Plan().scaled(9, 1), Plan(quick=True).scaled(9, 1)) == (9, 1)


def test_directory_is_gone_afterwards() -> None:
    with Bench(Plan(), lambda text: None) as bench:
        path = bench.source(1000)
        assert path.stat().st_size == 1000
    assert not bench.directory.exists()


def test_wrong_results_are_no_figures() -> None:
    require(True, "fine")
    with pytest.raises(RuntimeError, match="other bytes"):
        require(False, "other bytes")


def test_child_answers_line_by_line_and_ends(tmp_path: Path) -> None:
    with child(tmp_path, ECHO) as echo:
        assert echo.ask({"n": 1}) == {"n": 1}
        assert echo.ask([2]) == [2]
    assert not echo.running


def test_child_that_dies_says_why(tmp_path: Path) -> None:
    with (
        child(tmp_path, "raise SystemExit('no such thing')") as dead,
        pytest.raises(ChildFailed, match="no such thing"),
    ):
        dead.hear()


def test_child_that_is_silent_is_not_waited_for(tmp_path: Path) -> None:
    with child(tmp_path, "import time; time.sleep(60)") as silent, pytest.raises(ChildFailed, match="says nothing"):
        silent.hear(0.1)


def test_children_find_no_stack_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://production")
    monkeypatch.setenv("DATABASE_URL", "postgres://production")
    assert not {"REDIS_URL", "DATABASE_URL"} & environment().keys()


def test_cost_sees_processor_time_and_peak_memory(tmp_path: Path) -> None:
    work = (
        "import sys\nfor _ in sys.stdin:\n b = bytearray(64 << 20)\n n = sum(range(20_000_000))\n print(1, flush=True)"
    )
    with child(tmp_path, work) as busy:
        with Cost({"busy": busy.pid}) as cost:
            busy.ask(1)
        assert os.getpid() not in tree(busy.pid)
        assert cost.cpu["busy"] > 0.1
        assert cost.peaks["busy"] > 64


def test_memory_growth_is_seen(tmp_path: Path) -> None:
    grow = "import sys\nb = []\nfor _ in sys.stdin:\n b.append(bytearray(b'x') * (32 << 20))\n print(1, flush=True)"
    with child(tmp_path, grow) as growing:
        with MemorySampler({"it": growing.pid}) as memory:
            growing.ask(1)
        assert memory.growth_mib()["it"] > 30


def test_files_are_compared_byte_by_byte(tmp_path: Path) -> None:
    one = machine.random_file(tmp_path / "one", 3 * MIB + 5)
    other = tmp_path / "other"
    data = bytearray(one.read_bytes())
    other.write_bytes(data)
    assert machine.same(one, other)
    data[-1] ^= 1
    other.write_bytes(data)
    assert not machine.same(one, other)
    other.write_bytes(data[:-1])
    assert not machine.same(one, other)


def test_sparse_file_takes_no_room(tmp_path: Path) -> None:
    found = machine.sparse_file(tmp_path / "sparse", 1024 * MIB).stat()
    assert found.st_size == 1024 * MIB
    assert found.st_blocks * 512 < MIB


def test_room_is_checked_before_it_is_used(tmp_path: Path) -> None:
    machine.check_room(tmp_path, 1)
    with pytest.raises(RuntimeError, match="are needed"):
        machine.check_room(tmp_path, 1 << 60)


def test_one_upload_through_the_shipped_stack_is_measured() -> None:
    """The smallest real part: a stack, our client, what is stored compared with the source."""
    costs = Costs()
    with Bench(Plan(quick=True, rounds=1), lambda text: None) as bench:
        source = bench.source(MIB)
        (rate,) = bench.rounds(uploading(bench, bench.stack(), source, costs), warm=0, unit="MB/s")
    assert rate > 0
    assert {"ours web", "ours worker1", "ours redis"} <= costs.memory.keys()
