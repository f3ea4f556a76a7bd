"""From rounds to figures: medians, pairwise ratios, percentiles, the table and the JSON."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from bench.figures import BEGIN, END, Figure, Results, Span, percentile, put_into, ratios, table

WHEN = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


def figure(name: str = "upload_vs_nginx_put", **rest: Any) -> Figure:
    return Figure.compared(name, "MB/s", [90.0, 100.0, 130.0], [200.0, 100.0, 100.0], more_is_better=True, **rest)


def test_span_is_median_least_and_most() -> None:
    assert Span.of([3.0, 1.0, 10.0]) == Span(3.0, 1.0, 10.0)


def test_span_of_no_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one round"):
        Span.of([])


def test_ratio_is_taken_pair_by_pair() -> None:
    """Not of the medians: what slowed both down in one round leaves their ratio alone."""
    assert figure().ratio == Span(1.0, 0.45, 1.3)


def test_ratio_is_above_one_where_we_are_ahead() -> None:
    assert ratios([200.0], [100.0], more_is_better=True) == [2.0]
    assert ratios([2.0], [1.0], more_is_better=False) == [0.5]


def test_ratio_wants_as_many_rounds_of_both() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0, 2.0], [1.0], more_is_better=True)


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (99, 99), (100, 100), (0, 1)])
def test_percentile_is_the_nearest_rank(percent: int, expected: int) -> None:
    assert percentile([float(n) for n in range(100, 0, -1)], percent) == expected


def test_percentile_of_few_values_is_the_largest() -> None:
    assert percentile([5.0, 7.0], 99) == 7.0


def test_entry_has_what_readers_of_the_json_rely_on() -> None:
    entry = figure(must="0.65 (0.85)").entry("a machine", WHEN)
    wanted = {"name": "upload_vs_nginx_put", "ours": 100.0, "peer": 100.0, "unit": "MB/s", "ratio": 1.0, "n": 3}
    assert wanted.items() <= entry.items()
    assert entry["measured"] == "2026-01-02T03:04:05+00:00"


def test_entry_without_a_peer_has_no_ratio() -> None:
    entry = Figure.alone("drain_ms", "ms", [512.3456], n=50).entry("a machine", WHEN)
    assert (entry["ours"], entry["peer"], entry["ratio"], entry["n"]) == (512.3, None, None, 50)


def test_table_has_a_line_for_each_row() -> None:
    lines = table([figure().entry("m", WHEN), Figure.alone("drain_ms", "ms", [512.0]).entry("m", WHEN)]).splitlines()
    assert len(lines) == 4
    assert "100 (90-130)" in lines[2]
    assert len({len(line) for line in lines}) == 1


def test_partial_run_replaces_its_rows_only(tmp_path: Path) -> None:
    results = Results(tmp_path / "results" / "latest.json")
    order = ["upload_vs_nginx_put", "drain_ms"]
    results.replace([Figure.alone("drain_ms", "ms", [900.0]).entry("m", WHEN)], order)
    results.replace([figure().entry("m", WHEN)], order)
    results.replace([Figure.alone("drain_ms", "ms", [500.0]).entry("m", WHEN)], order)
    kept = json.loads((tmp_path / "results" / "latest.json").read_text())
    assert [(entry["name"], entry["ours"]) for entry in kept] == [("upload_vs_nginx_put", 100.0), ("drain_ms", 500.0)]
    assert len(list((tmp_path / "results").iterdir())) == 1


def test_rows_that_no_longer_exist_leave_the_file(tmp_path: Path) -> None:
    results = Results(tmp_path / "latest.json")
    results.replace([figure("gone").entry("m", WHEN)], ["gone"])
    assert results.replace([figure().entry("m", WHEN)], ["upload_vs_nginx_put"]) == results.read()
    assert [entry["name"] for entry in results.read()] == ["upload_vs_nginx_put"]


def test_page_gets_the_table_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    put_into(page, [figure().entry("a machine", WHEN)])
    text = page.read_text()
    assert "| upload_vs_nginx_put |" in text
    assert "2026-01-02, a machine" in text
    assert "old" not in text
    assert text.startswith("# Before")
    assert text.endswith("after\n")
    put_into(page, [figure().entry("a machine", WHEN)])
    assert page.read_text() == text


def test_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("nothing here")
    with pytest.raises(ValueError, match="no place"):
        put_into(page, [])
    assert page.read_text() == "nothing here"
