"""Segments stored a second where Storage takes 20 MB/s from each worker: 4 workers against 1."""

from __future__ import annotations

from collections.abc import Callable

from bench.bench import MIB, OUR_CLIENT, Bench, Costs
from bench.figures import Figure
from bench.moving import SECONDS
from bench.stack import Stack

NAME = "workers_scale"
MUST = "3.5 (3.9)"
RATE = 20e6
UPLOADS = 16
SEGMENT_BYTES = 16 * MIB


def run(bench: Bench) -> Figure:
    segments = bench.plan.scaled(2, 1)  # of each upload
    path = bench.source(segments * SEGMENT_BYTES)
    costs = Costs()

    def storing(stack: Stack) -> Callable[[], float]:
        tokens = stack.tokens(UPLOADS)
        client = bench.client(OUR_CLIENT)
        request = {"do": "uploads", "url": stack.url, "tokens": tokens, "paths": [str(path)] * UPLOADS}

        def measure() -> float:
            sent = costs.of(f"{len(stack.servers()) - 2} workers:", stack.servers, lambda: client.ask(request, SECONDS))
            for payload in sent["payloads"]:
                stack.drop(payload)
            return UPLOADS * segments / float(sent["ended"] - sent["began"])

        return measure

    four, one = (
        storing(bench.stack(f"--workers={count}", DJANGO_SETTINGS_MODULE="bench.settings", BENCH_SLOW_RATE=str(RATE)))
        for count in (4, 1)
    )
    found = bench.pairs(four, one, warm=0, unit="segments/s")
    return Figure.compared(
        NAME,
        "segments/s",
        *found,
        more_is_better=True,
        must=MUST,
        cpu=costs.cpu,
        memory=costs.memory,
        quick=bench.plan.quick,
    )
