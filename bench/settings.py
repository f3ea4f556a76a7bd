"""The reference site's settings, for the two rows that need others. From the environment:

BENCH_SLOW_RATE      bytes a second that a worker's Storage takes
BENCH_DRAIN_SPREAD   seconds over which reconnects are spread after a drain
"""

import os

from project.settings import *  # noqa: F403
from project.settings import DELIVERY, DELIVERY_VAR, STORAGES

if rate := os.environ.get("BENCH_SLOW_RATE"):
    turns = DELIVERY_VAR / "turns"
    turns.mkdir(exist_ok=True)
    STORAGES["delivery"] = {
        "BACKEND": "bench.slow_storage.SlowStorage",
        "OPTIONS": {**STORAGES["delivery"]["OPTIONS"], "rate": float(rate), "turns": str(turns)},
    }
if spread := os.environ.get("BENCH_DRAIN_SPREAD"):
    DELIVERY["DRAIN_SPREAD"] = float(spread)
