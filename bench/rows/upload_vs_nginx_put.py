"""One upload of 512 MiB with our Python client, against nginx taking DAV PUT from curl."""

from __future__ import annotations

from bench import machine
from bench.bench import MIB, Bench, Costs, megabytes_a_second, require
from bench.clients import curl
from bench.figures import Figure
from bench.moving import uploading
from bench.peers.nginx import Nginx

NAME = "upload_vs_nginx_put"
MUST = "0.65 (0.85)"


def run(bench: Bench) -> Figure:
    size = bench.plan.scaled(512, 128) * MIB
    source = bench.source(size)
    costs = Costs()
    nginx = bench.peer(Nginx)
    ours = uploading(bench, bench.stack(), source, costs)

    def peer() -> float:
        seconds = costs.of("nginx", nginx.servers, lambda: curl.put(source, f"{nginx.url}/put.bin"))
        require(machine.same(source, nginx.root / "put.bin"), "nginx stored something else")
        (nginx.root / "put.bin").unlink()
        return megabytes_a_second(size, float(seconds))

    found = bench.pairs(ours, peer, warm=3 * size, unit="MB/s")
    return Figure.compared(
        NAME, "MB/s", *found, more_is_better=True, must=MUST, cpu=costs.cpu, memory=costs.memory, quick=bench.plan.quick
    )
