"""Processor seconds of all server processes for each GiB uploaded, at 64 MiB, 512 MiB and 4 GiB: largest / smallest.

The same number of bytes is sent at each size, so that clocks and idle processes weigh the same.
"""

from __future__ import annotations

from bench import machine
from bench.bench import MIB, OUR_CLIENT, Bench, require
from bench.figures import Figure
from bench.meter import Cost
from bench.moving import SECONDS, sha256_of

NAME = "cost_slope"
MUST = "<= 1.2 (1.1)"


def run(bench: Bench) -> Figure:
    sizes = [64 * MIB, 512 * MIB, 4096 * MIB] if not bench.plan.quick else [16 * MIB, 64 * MIB, 256 * MIB]
    bench.room(2 * sizes[-1])
    stack = bench.stack()
    (token,) = stack.tokens(1)
    client = bench.client(OUR_CLIENT)
    sources = {size: machine.random_file(bench.directory / f"{size}.bin", size) for size in sizes}
    digests = {size: sha256_of(path) for size, path in sources.items()}
    notes: dict[str, object] = {}

    def cost_of(size: int) -> float:
        request = {"do": "upload", "url": stack.url, "token": token, "path": str(sources[size])}
        seconds = 0.0
        for _ in range(sizes[-1] // size):
            with Cost(stack.servers()) as cost:
                sent = client.ask(request, SECONDS)
            require(sent["sha256"] == digests[size], "what is stored is not the source")
            stack.drop(sent["payload"])
            seconds += sum(cost.cpu.values())
        return seconds * 1024 * MIB / sizes[-1]

    def measure() -> float:
        each = {size: cost_of(size) for size in sizes}
        notes.update({f"s_per_GiB_at_{size // MIB}_MiB": round(seconds, 2) for size, seconds in each.items()})
        bench.say(str(notes))
        return max(each.values()) / min(each.values())

    cost_of(sizes[0])
    found = bench.rounds(measure, warm=2 * sizes[-1], unit="largest / smallest")
    return Figure.alone(NAME, "ratio", found, must=MUST, notes=notes, quick=bench.plan.quick)
