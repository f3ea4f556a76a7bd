"""One upload of 512 MiB with our Python client, against @tus/server and tus-js-client, with their defaults (one PATCH)."""

from __future__ import annotations

from bench import machine
from bench.bench import MIB, Bench, Costs, megabytes_a_second, require
from bench.figures import Figure
from bench.moving import SECONDS, uploading
from bench.peers.tus_node import TusNode, tus_js_client

NAME = "upload_vs_tus_node"
MUST = "1.25 (1.6)"


def run(bench: Bench) -> Figure:
    size = bench.plan.scaled(512, 128) * MIB
    source = bench.source(size)
    costs = Costs()
    server = bench.peer(TusNode)
    client = bench.keep(tus_js_client(bench.directory))
    ours = uploading(bench, bench.stack(), source, costs)

    def peer() -> float:
        request = {"endpoint": server.endpoint, "path": str(source)}
        sent = costs.of("tus", server.servers, lambda: client.ask(request, SECONDS))
        require(machine.same(source, server.stored(sent["url"])), "the peer stored something else")
        server.stored(sent["url"]).unlink()
        return megabytes_a_second(size, sent["seconds"])

    found = bench.pairs(ours, peer, warm=3 * size, unit="MB/s")
    return Figure.compared(
        NAME, "MB/s", *found, more_is_better=True, must=MUST, cpu=costs.cpu, memory=costs.memory, quick=bench.plan.quick
    )
