"""SIGTERM of a worker with 50 live uploads: milliseconds to the last 1001 that a client sees."""

from __future__ import annotations

import os
import signal
import time

from bench.bench import OUR_CLIENT, Bench, require
from bench.children import wait_until
from bench.figures import Figure

NAME = "drain_ms"
MUST = "<= 1,000 ms"
UPLOADS = 50
RATE = 512 * 1024.0
SECONDS = 60.0


def run(bench: Bench) -> Figure:
    stack = bench.stack()
    tokens = stack.tokens(UPLOADS)
    notes: dict[str, object] = {}

    def measure() -> float:
        worker = stack.parts()["worker1"]
        client = bench.client(OUR_CLIENT)
        client.ask(
            {"do": "live", "url": stack.url, "tokens": tokens, "token": "", "rate": RATE, "seconds": 10.0}, SECONDS
        )
        began = time.monotonic()
        os.kill(worker, signal.SIGTERM)
        answer = client.ask({}, SECONDS)
        client.stop()
        require(answer["codes"] == {"1001": UPLOADS}, f"closes: {answer['codes']}, expected {UPLOADS} times 1001")
        wait_until(lambda: stack.parts().get("worker1", worker) != worker, SECONDS, "another worker")
        notes.update(first_ms=round(1000 * (answer["closes"][0] - began)), codes=answer["codes"])
        return float(1000 * (answer["closes"][-1] - began))

    found = bench.rounds(measure, warm=0, unit="ms")
    return Figure.alone(NAME, "ms", found, must=MUST, notes=notes, quick=bench.plan.quick)
