"""The command: `python -m faults [--trials N] [--only CELL] [--seed S]`.

Exit status: 0 nothing failed, 1 something did, 2 wrong usage, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from faults.cells import Cell, all_cells
from faults.runner import Runner, say_table


def main() -> int:
    """Run the cells; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=5, metavar="N", help="trials of each cell (default: 5)")
    parser.add_argument("--only", action="append", default=[], metavar="CELL", help="cells whose name has this in it")
    parser.add_argument("--seed", type=int, default=None, metavar="S", help="what every choice is drawn from")
    parser.add_argument("--trial", type=int, default=None, metavar="I", help="run just this trial of each cell")
    parser.add_argument("--hurry", action="store_true", help="shorten the faults that take 14 to 60 s")
    parser.add_argument("--list", action="store_true", help="show the cells")
    options = parser.parse_args()
    cells = _chosen(options.only)
    if options.list or not cells:
        print("\n".join(cell.name for cell in cells or all_cells()))
        return 0 if cells else 2
    seed = options.seed if options.seed is not None else int(time.time())
    folder = Path(tempfile.mkdtemp(prefix="delivery-faults-"))
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    runner = Runner(folder, seed=seed, trials=options.trials, hurry=options.hurry)
    if options.trial is not None:
        runner.only(options.trial)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: no stack is left behind
    print(f"seed {seed}, in {folder}", flush=True)
    try:
        asyncio.run(runner.run(cells))
    except KeyboardInterrupt:
        return 130
    finally:
        say_table(runner)
    if not runner.failures:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if runner.failures else 0


def _chosen(words: list[str]) -> list[Cell]:
    cells = all_cells()
    return [cell for cell in cells if not words or any(word in cell.name for word in words)]


if __name__ == "__main__":
    sys.exit(main())
