"""`python -m bench`: install what is compared with, measure row by row, print the table, keep it in `results`."""

from __future__ import annotations

import argparse
import datetime
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from bench import install, machine
from bench.bench import Bench, Plan
from bench.figures import Figure, Results, put_into, table
from bench.rows import ROWS, chosen

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "latest.json"
PAGE = HERE.parent / "docs" / "explanation" / "performance.md"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="rows whose name contains NAME; may be repeated"
    )
    parser.add_argument("--quick", action="store_true", help="less of everything: shows that it works, not how fast")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each comparison (default: 5, quick: 2)")
    parser.add_argument("--list", action="store_true", help="name the rows, and measure nothing")
    parser.add_argument("--table", action="store_true", help="print what was measured last, and measure nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="default: %(default)s")
    return parser


def measure(name: str, plan: Plan) -> Figure | None:
    """Measure one row; None where it failed, which is said."""
    row = ROWS[name]
    _say(f"== {name}")
    began = time.monotonic()
    try:
        with Bench(plan, lambda text: _say(f"   {text}")) as bench:
            figure = row.run(bench)
    except Exception:  # noqa: BLE001 - the other rows are still to be measured
        _say(f"   FAILED\n{traceback.format_exc()}")
        return None
    _say(f"   {figure.ours} {figure.unit}, ratio {figure.ratio or '-'}, in {time.monotonic() - began:.0f} s")
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return the exit status: 0 where every row was measured."""
    options = parser().parse_args(arguments)
    results = Results(options.results)
    if options.list:
        print("\n".join(f"{name:26} {row.MUST}" for name, row in ROWS.items()))
        return 0
    if options.table:
        print(table(results.read()))
        return 0
    names = chosen(options.only)
    if not names:
        _say(f"no row is called like {', '.join(options.only)}; there are {', '.join(ROWS)}")
        return 2
    install.everything()
    where = machine.describe()
    plan = Plan(quick=options.quick, rounds=options.rounds)
    entries = []
    for name in names:
        if (figure := measure(name, plan)) is not None:
            entries.append(figure.entry(where, datetime.datetime.now(datetime.UTC)))
            results.replace(entries, list(ROWS))  # at once: a run that is broken off keeps what it has
    if options.results == RESULTS:
        put_into(PAGE, results.read())
    print(f"\n{where}\n\n{table(entries)}")
    for entry in entries:
        _print_cost(entry)
    return 0 if len(entries) == len(names) else 1


def _print_cost(entry: dict[str, object]) -> None:
    for what, unit in (("cpu_seconds", "s of processor"), ("peak_mib", "MiB at most"), ("notes", "")):
        found = entry[what]
        if isinstance(found, dict) and found:
            print(f"{entry['name']}: " + ", ".join(f"{name} {value}" for name, value in found.items()) + f" {unit}")


if __name__ == "__main__":
    sys.exit(main())
