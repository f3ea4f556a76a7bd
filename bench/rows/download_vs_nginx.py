"""One delivery of 512 MiB to one recipient's file, against nginx serving static files to curl, which saves it in a file too."""

from __future__ import annotations

import shutil

from bench import machine
from bench.bench import MIB, Bench, Costs, megabytes_a_second, require
from bench.clients import curl
from bench.figures import Figure
from bench.moving import downloading
from bench.peers.nginx import Nginx

NAME = "download_vs_nginx"
MUST = "0.8 (1.0)"


def run(bench: Bench) -> Figure:
    size = bench.plan.scaled(512, 128) * MIB
    source = bench.source(size)
    costs = Costs()
    server = bench.peer(Nginx)
    shutil.copyfile(source, server.root / "get.bin")
    ours = downloading(bench, bench.stack(), source, costs)
    saved = bench.folder("fetched") / "get.bin"

    def peer() -> float:
        seconds = costs.of("nginx", server.servers, lambda: curl.get(f"{server.url}/get.bin", saved))
        require(machine.same(source, saved), "curl received something else")
        saved.unlink()
        return megabytes_a_second(size, float(seconds))

    found = bench.pairs(ours, peer, warm=3 * size, unit="MB/s")
    return Figure.compared(
        NAME, "MB/s", *found, more_is_better=True, must=MUST, cpu=costs.cpu, memory=costs.memory, quick=bench.plan.quick
    )
