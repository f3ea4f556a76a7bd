"""100 concurrent uploads of 8 MiB, each on a connection of its own, against one of 800 MiB, from one client process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.bench import MIB, OUR_CLIENT, Bench, Costs, megabytes_a_second, require
from bench.figures import Figure
from bench.moving import SECONDS, sha256_of

NAME = "many_uploads_vs_one"
MUST = "0.7 (0.9)"
UPLOADS = 100


def run(bench: Bench) -> Figure:
    small = bench.plan.scaled(8, 2) * MIB
    one, part = bench.source(UPLOADS * small, "one.bin"), bench.source(small, "part.bin")
    costs = Costs()
    stack = bench.stack()
    tokens = stack.tokens(UPLOADS)
    client = bench.client(OUR_CLIENT)

    def sending(who: str, path: Path, count: int) -> Callable[[], float]:
        expected = sha256_of(path)
        request = {"do": "uploads", "url": stack.url, "tokens": tokens[:count], "paths": [str(path)] * count}

        def measure() -> float:
            sent = costs.of(who, stack.servers, lambda: client.ask(request, SECONDS))
            for payload, digest in zip(sent["payloads"], sent["sha256"], strict=True):
                require(digest == expected == stack.digest(payload), "what is stored is not the source")
                stack.drop(payload)
            return megabytes_a_second(UPLOADS * small, sent["ended"] - sent["began"])

        return measure

    found = bench.pairs(
        sending("100 uploads:", part, UPLOADS), sending("one upload:", one, 1), warm=3 * UPLOADS * small, unit="MB/s"
    )
    return Figure.compared(
        NAME, "MB/s", *found, more_is_better=True, must=MUST, cpu=costs.cpu, memory=costs.memory, quick=bench.plan.quick
    )
