"""1,000 idle clients of a web process that drains: seconds from the first 1001 until all are welcomed by another.

Without the spread of reconnects over time (DRAIN_SPREAD 0), and without a client's own backoff.
"""

from __future__ import annotations

import os
import signal
import sys

from bench.bench import CROWD, Bench, require
from bench.children import Child, answers, environment, free_port, wait_until
from bench.figures import Figure
from bench.meter import Cost

NAME = "reconnect_1000_s"
MUST = "<= 1.5 s (0.6)"
SECONDS = 60.0


def run(bench: Bench) -> Figure:
    count = bench.plan.scaled(1000, 200)
    settings = {"DJANGO_SETTINGS_MODULE": "bench.settings", "BENCH_DRAIN_SPREAD": "0"}
    stack = bench.stack(**settings)
    tokens = stack.tokens(count)
    notes: dict[str, object] = {"failures": 0}
    costs: dict[str, float] = {}

    def measure() -> float:
        port = free_port()
        serve = [sys.executable, "manage.py", "delivery_web", f"--port={port}"]
        variables = environment(**settings, DELIVERY_VAR=str(stack.var))
        with Child(serve, log=bench.directory / f"web{port}.log", variables=variables) as leaving:
            wait_until(lambda: answers(port), SECONDS, "the second web process")
            crowd = bench.client(CROWD)
            url = f"ws://127.0.0.1:{port}/ws/delivery/"
            crowd.ask(
                {"do": "reconnect", "url": url, "next_url": stack.url, "tokens": tokens, "seconds": SECONDS}, SECONDS
            )
            with Cost(stack.servers()) as cost:
                os.kill(leaving.pid, signal.SIGTERM)
                answer = crowd.hear(SECONDS)
        crowd.stop()
        require(answer["failures"] == 0, f"{answer['failures']} clients were not welcomed again")
        require(set(answer["codes"]) == {"1001"}, f"closed with {answer['codes']}")
        notes.update(codes=answer["codes"], closing_s=round(answer["last_close"] - answer["first_close"], 3))
        costs.update(cost.cpu)
        return float(answer["last_welcome"] - answer["first_close"])

    found = bench.rounds(measure, warm=0, unit="s")
    return Figure.alone(NAME, "s", found, must=MUST, cpu=costs, notes=notes, quick=bench.plan.quick)
