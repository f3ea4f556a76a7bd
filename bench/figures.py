"""Figures: rounds become a median with its range, pairs of rounds a ratio; tables for people, JSON for programs."""

from __future__ import annotations

import datetime
import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Span:
    """Median, least and most of some rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Span:
        """Raises ValueError where there are no values."""
        if not values:
            raise ValueError("a figure needs at least one round")
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        if self.least == self.most:
            return _number(self.median)
        return f"{_number(self.median)} ({_number(self.least)}-{_number(self.most)})"


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that is not below `percent` of `values` (nearest rank)."""
    if not values:
        raise ValueError("a percentile needs at least one value")
    ranked = sorted(values)
    return ranked[max(0, -(-int(percent * len(ranked)) // 100) - 1)]


def ratios(ours: Sequence[float], peer: Sequence[float], *, more_is_better: bool) -> list[float]:
    """Return how much better we were in each round: above 1 where we are ahead."""
    pairs = zip(ours, peer, strict=True)
    return [mine / theirs if more_is_better else theirs / mine for mine, theirs in pairs]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row. `ratio` is None where there is no peer; `n`: rounds, or messages where that is what was counted."""

    name: str
    unit: str
    n: int
    ours: Span
    peer: Span | None = None
    ratio: Span | None = None
    must: str = ""
    cpu: Mapping[str, float] = field(default_factory=dict)  # seconds of one timed run of ours, and of the peer's
    memory: Mapping[str, float] = field(default_factory=dict)  # peak of each server process, MiB
    notes: Mapping[str, Any] = field(default_factory=dict)
    quick: bool = False

    @classmethod
    def compared(
        cls, name: str, unit: str, ours: Sequence[float], peer: Sequence[float], *, more_is_better: bool, **rest: Any
    ) -> Figure:
        """Return a row of pairs of rounds."""
        return cls(
            name=name,
            unit=unit,
            n=rest.pop("n", len(ours)),
            ours=Span.of(ours),
            peer=Span.of(peer),
            ratio=Span.of(ratios(ours, peer, more_is_better=more_is_better)),
            **rest,
        )

    @classmethod
    def alone(cls, name: str, unit: str, ours: Sequence[float], **rest: Any) -> Figure:
        """Return a row without a peer."""
        return cls(name=name, unit=unit, n=rest.pop("n", len(ours)), ours=Span.of(ours), **rest)

    def entry(self, machine: str, when: datetime.datetime) -> dict[str, Any]:
        """Return the row as `latest.json` has it."""
        return {
            "name": self.name,
            "ours": _rounded(self.ours.median),
            "peer": _rounded(self.peer.median) if self.peer else None,
            "unit": self.unit,
            "ratio": _rounded(self.ratio.median) if self.ratio else None,
            "n": self.n,
            "must": self.must,
            "ours_range": [_rounded(self.ours.least), _rounded(self.ours.most)],
            "peer_range": [_rounded(self.peer.least), _rounded(self.peer.most)] if self.peer else None,
            "ratio_range": [_rounded(self.ratio.least), _rounded(self.ratio.most)] if self.ratio else None,
            "cpu_seconds": dict(self.cpu),
            "peak_mib": dict(self.memory),
            "notes": dict(self.notes),
            "quick": self.quick,
            "machine": machine,
            "measured": when.isoformat(timespec="seconds"),
        }


def table(entries: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as a table in Markdown."""
    head = ("row", "ours", "peer", "unit", "ratio", "must (aim)", "n")
    rows = [head, *(_cells(entry) for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _cells(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        entry["name"] + (" (quick)" if entry.get("quick") else ""),
        _with_range(entry["ours"], entry.get("ours_range")),
        _with_range(entry["peer"], entry.get("peer_range")),
        entry["unit"],
        _with_range(entry["ratio"], entry.get("ratio_range")),
        entry.get("must", ""),
        str(entry["n"]),
    )


def _with_range(value: float | None, ends: Sequence[float] | None) -> str:
    return "-" if value is None else str(Span(value, *(ends or (value, value))))


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


BEGIN, END = "<!-- measured: python -m bench -->", "<!-- /measured -->"


def put_into(page: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Renew the table between the two marks of a page. Raises ValueError where they are missing."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no place for a table")
    machines = sorted({f"{entry['measured'][:10]}, {entry['machine']}" for entry in entries})
    text = "\n\n".join([table(entries), *machines]) if entries else "Nothing has been measured yet."
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


class Results:
    """`latest.json`: a list of rows. A run of some rows replaces these and leaves the others."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[dict[str, Any]]:
        try:
            found = json.loads(self._path.read_text())
        except FileNotFoundError:
            return []
        return list(found)

    def replace(self, entries: Sequence[dict[str, Any]], order: Sequence[str]) -> list[dict[str, Any]]:
        """Put `entries` in, sorted by `order`, and write the file as a whole. Returns what it holds now."""
        by_name = {entry["name"]: entry for entry in [*self.read(), *entries]}
        kept = [by_name[name] for name in order if name in by_name]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(kept, indent=1) + "\n")
        temporary.replace(self._path)
        return kept
