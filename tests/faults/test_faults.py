"""A handful of the faults of `make faults`, on a stack of their own: one trial each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rig.environment import ROOT, own_environment

SECONDS = 150  # a machine that does other things as well; alone it takes 40 s
CELLS = (
    "network: cut at a frame's end",
    "web: SIGKILL",
    "worker: SIGKILL of a pool child",
    "redis: FLUSHALL ten times",
)


def test_transfers_survive_a_handful_of_faults(tmp_path: Path) -> None:
    arguments = [word for cell in CELLS for word in ("--only", cell)]
    done = subprocess.run(
        [sys.executable, "-m", "faults", "--trials", "1", "--hurry", "--seed", "1", *arguments],
        cwd=ROOT,
        env=own_environment(TMPDIR=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == f"{len(CELLS)} trials, 0 failed", done.stdout + done.stderr
    assert done.returncode == 0
