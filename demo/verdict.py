"""What must hold at the end of a run, and how the run is summed up."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from demo.account import amount
from demo.leg import Leg
from demo.source import Copy

#: A smaller payload may be cut before anything of it has arrived, and then begins anew.
RESUMABLE_BYTES = 1_048_576
LOST = "1006"


@dataclass(frozen=True)
class Verdict:
    """What came of a run; `problems` is empty where all of it held."""

    source: Copy
    legs: Sequence[Leg]
    problems: Sequence[str]
    seconds: float

    @property
    def ok(self) -> bool:
        return not self.problems

    def last_line(self) -> str:
        """Return the summary as one line of JSON."""
        closes = sum((leg.closes for leg in self.legs), Counter[str]())
        return json.dumps(
            {
                "ok": self.ok,
                "size": self.source.size,
                "sha256": self.source.sha256,
                "closes": dict(sorted(closes.items())),
                "resumes": sum(leg.client.summary.get("resumes", 0) for leg in self.legs),
                "resent_bytes": sum(leg.resent_bytes for leg in self.legs),
                "seconds": round(self.seconds, 1),
            }
        )


def judge(source: Copy, copies: Mapping[str, Copy | None], legs: Sequence[Leg]) -> list[str]:
    """Return what did not hold, one sentence each. `copies`: what was found where, None where nothing was."""
    return [*_differences(source, copies), *(problem for leg in legs for problem in _missed(leg))]


def _differences(source: Copy, copies: Mapping[str, Copy | None]) -> list[str]:
    found = [f"nothing was found {where}" for where, copy in copies.items() if copy is None]
    wrong = [
        f"{where} are {amount(copy.size)} with SHA-256 {copy.sha256}, expected those of the source"
        for where, copy in copies.items()
        if copy is not None and copy != source
    ]
    return found + wrong


def _missed(leg: Leg) -> list[str]:
    planned, lost, resumes = len(leg.journey.cuts), leg.closes[LOST], leg.client.summary.get("resumes", 0)
    problems = []
    if leg.client.status != 0:
        problems.append(f"{leg.name}'s client ended with status {leg.client.status}")
    if leg.cuts_made != planned:
        problems.append(f"{leg.name} was cut {leg.cuts_made} times, expected {planned}")
    if lost != leg.cuts_made:
        problems.append(f"{leg.name} saw {LOST} {lost} times, and was cut {leg.cuts_made} times")
    if strange := leg.closes.keys() - {LOST}:
        problems.append(f"{leg.name} saw {', '.join(sorted(strange))}, which nobody caused")
    if leg.journey.size >= RESUMABLE_BYTES and resumes < leg.cuts_made:
        problems.append(f"{leg.name} resumed {resumes} times after {leg.cuts_made} cuts")
    return problems
