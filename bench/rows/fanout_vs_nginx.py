"""One payload of 16 MiB to 50 recipients, from their accepts to the last `done`, against nginx serving it to 50 curls.

Recipients are light clients in two processes that check every checksum; the curls throw away what comes. Of 50 curl
processes and one curl with 50 transfers, the faster counts.
"""

from __future__ import annotations

import shutil

from bench import machine
from bench.bench import CROWD, MIB, Bench, Costs, megabytes_a_second
from bench.clients import curl
from bench.figures import Figure
from bench.moving import SECONDS, sha256_of
from bench.peers.nginx import Nginx

NAME = "fanout_vs_nginx"
MUST = "1.5 (2)"
RECIPIENTS = 50
PROCESSES = 2


def run(bench: Bench) -> Figure:
    size = 16 * MIB
    source = bench.source(size)
    sha256 = sha256_of(source)
    costs = Costs()
    nginx = bench.peer(Nginx)
    shutil.copyfile(source, nginx.root / "get.bin")
    stack = bench.stack()
    tokens = stack.tokens(RECIPIENTS)
    crowds = [bench.client(CROWD) for _ in range(PROCESSES)]
    requests = [
        {
            "do": "fan_out",
            "url": stack.url,
            "tokens": tokens[number::PROCESSES],
            "source": str(source),
            "sha256": sha256,
        }
        for number in range(PROCESSES)
    ]

    def receive() -> float:
        for crowd in crowds:
            crowd.say({})
        ends = [crowd.hear(SECONDS) for crowd in crowds]
        return max(end["ended"] for end in ends) - min(end["began"] for end in ends)

    def ours() -> float:
        payload = stack.deliver(source, [f"user:bench{number}" for number in range(RECIPIENTS)])
        for crowd, request in zip(crowds, requests, strict=True):
            crowd.say(request)
        for crowd in crowds:
            crowd.hear()  # everybody was offered it
        machine.warm(8 * size)
        seconds = float(costs.of("ours", stack.servers, receive))
        stack.drop(payload)
        return megabytes_a_second(RECIPIENTS * size, seconds)

    def peer() -> float:
        url = f"{nginx.url}/get.bin"
        many = float(costs.of("nginx", nginx.servers, lambda: curl.get_in_many_processes(url, RECIPIENTS)))
        return megabytes_a_second(RECIPIENTS * size, min(many, curl.get_in_one_process(url, RECIPIENTS)))

    found = bench.pairs(ours, peer, warm=8 * size, unit="MB/s")
    return Figure.compared(
        NAME, "MB/s", *found, more_is_better=True, must=MUST, cpu=costs.cpu, memory=costs.memory, quick=bench.plan.quick
    )
