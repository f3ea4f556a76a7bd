"""What must hold at the end of a run, and how the run is summed up."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from demo.account import amount
from demo.drains import SHUTDOWNS, WINDOW_BYTES, Drain
from demo.leg import Leg
from demo.plan import Plan
from demo.source import Copy

#: A smaller payload may be cut before anything of it has arrived, and then begins anew.
RESUMABLE_BYTES = 1_048_576
LOST, GOING_AWAY = "1006", "1001"


@dataclass(frozen=True)
class Verdict:
    """What came of a run; `problems` is empty where all of it held."""

    source: Copy
    run: Plan
    problems: Sequence[str]
    seconds: float

    @property
    def ok(self) -> bool:
        return not self.problems

    def last_line(self) -> str:
        """Return the summary as one line of JSON."""
        legs = self.run.legs
        closes = sum((leg.closes for leg in legs), Counter[str]())
        return json.dumps(
            {
                "ok": self.ok,
                "size": self.source.size,
                "sha256": self.source.sha256,
                "closes": dict(sorted(closes.items())),
                "resumes": sum(leg.client.summary.get("resumes", 0) for leg in legs),
                "resent_bytes": sum(leg.resent_bytes for leg in legs),
                "drains": [drain.as_dict() for drain in _drains(self.run)],
                "seconds": round(self.seconds, 1),
            }
        )


def judge(source: Copy, copies: Mapping[str, Copy | None], run: Plan) -> list[str]:
    """Return what did not hold, one sentence each. `copies`: what was found where, None where nothing was."""
    return [
        *_differences(source, copies),
        *_wrong_drains(run),
        *(problem for leg in run.legs for problem in (*_wrong_cuts(leg), *_wrong_closes(leg, run))),
    ]


def _drains(run: Plan) -> Sequence[Drain]:
    return run.drains.made if run.drains else ()


def _differences(source: Copy, copies: Mapping[str, Copy | None]) -> list[str]:
    found = [f"nothing was found {where}" for where, copy in copies.items() if copy is None]
    wrong = [
        f"{where} are {amount(copy.size)} with SHA-256 {copy.sha256}, expected those of the source"
        for where, copy in copies.items()
        if copy is not None and copy != source
    ]
    return found + wrong


def _wrong_drains(run: Plan) -> list[str]:
    made = _drains(run)
    problems = [
        f"after {drain.part} was shut down {amount(drain.resent_bytes)} went again, more than a window"
        for drain in made
        if drain.resent_bytes > WINDOW_BYTES
    ]
    if run.drains and len(made) != SHUTDOWNS:
        problems.append(f"the sender lived through {len(made)} shutdowns, expected {SHUTDOWNS}")
    return problems


def _wrong_cuts(leg: Leg) -> list[str]:
    planned, resumes = len(leg.journey.cuts), leg.client.summary.get("resumes", 0)
    problems = []
    if leg.client.status != 0:
        problems.append(f"{leg.name}'s client ended with status {leg.client.status}")
    if leg.cuts_made != planned:
        problems.append(f"{leg.name} was cut {leg.cuts_made} times, expected {planned}")
    if leg.journey.size >= RESUMABLE_BYTES and resumes < leg.cuts_made:
        problems.append(f"{leg.name} resumed {resumes} times after {leg.cuts_made} cuts")
    return problems


def _wrong_closes(leg: Leg, run: Plan) -> list[str]:
    """Return which close codes were seen that nobody caused, or not seen although somebody did."""
    # While the web process is shut down the recipients wait for the upload to be complete: connected, with no worker.
    shutdowns = [drain.part for drain in _drains(run) if leg is run.sender or drain.part == "web"]
    caused = {LOST: leg.cuts_made, GOING_AWAY: len(shutdowns)}
    return [
        f"{leg.name} saw {code} {leg.closes[code]} times, expected {caused.get(code, 0)}"
        for code in sorted(leg.closes.keys() | caused.keys())
        if leg.closes[code] != caused.get(code, 0)
    ]
