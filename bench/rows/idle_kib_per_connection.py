"""What 1,000 connected recipients that do nothing cost: growth of all server processes, KiB for each."""

from __future__ import annotations

import time

from bench.bench import CROWD, Bench, require
from bench.figures import Figure
from bench.meter import pss_kib

NAME = "idle_kib_per_connection"
MUST = "<= 50 KiB (40)"
SETTLE_SECONDS = 3.0


def run(bench: Bench) -> Figure:
    count = bench.plan.scaled(1000, 200)
    stack = bench.stack()
    tokens = stack.tokens(count)
    grown: dict[str, float] = {}

    def hold(crowd_size: int) -> float:
        crowd = bench.client(CROWD)
        before = {name: pss_kib(pid) for name, pid in stack.servers().items()}
        crowd.ask({"do": "idle", "url": stack.url, "tokens": tokens[:crowd_size]})
        time.sleep(SETTLE_SECONDS)
        after = {name: pss_kib(pid) for name, pid in stack.servers().items()}
        require(crowd.ask({})["lost"] == 0, "the server closed idle connections")
        crowd.stop()
        grown.update({name: round((after[name] - before[name]) / crowd_size, 2) for name in after})
        return sum(after[name] - before[name] for name in after) / crowd_size

    hold(20)  # imports, pools and caches, which all later connections share
    found = hold(count)  # once: memory that was grown stays grown
    bench.say(f"{found:.1f} KiB each: {grown}")
    return Figure.alone(NAME, "KiB", [found], n=count, must=MUST, notes=dict(grown), quick=bench.plan.quick)
