"""256 MiB from a sender to a recipient, first byte sent to last byte saved, against tus upload, then nginx download."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from bench import machine
from bench.bench import MIB, OUR_CLIENT, Bench, Costs, megabytes_a_second, require
from bench.clients import curl
from bench.figures import Figure
from bench.moving import SECONDS
from bench.peers.nginx import Nginx
from bench.peers.tus_node import TusNode, tus_js_client

NAME = "relay_vs_tus_http"
MUST = "1.3 (1.6)"


def run(bench: Bench) -> Figure:
    size = bench.plan.scaled(256, 64) * MIB
    source = bench.source(size)
    costs = Costs()
    tus, nginx = bench.peer(TusNode), bench.peer(Nginx)
    tus_client = bench.keep(tus_js_client(bench.directory))
    stack = bench.stack()
    tokens = stack.tokens(2)
    sender, recipient = bench.client(OUR_CLIENT), bench.client(OUR_CLIENT)
    saved = bench.folder("fetched") / "get.bin"

    def relay() -> tuple[dict[str, object], dict[str, object]]:
        upload = {"do": "upload", "url": stack.url, "token": tokens[0], "path": str(source), "to": ["user:bench1"]}
        sender.say(upload)
        return sender.hear(SECONDS), recipient.hear(SECONDS)

    def ours() -> float:
        directory = bench.folder("received")
        recipient.ask({"do": "receive", "url": stack.url, "token": tokens[1], "directory": str(directory)})
        sent, received = costs.of("ours", stack.servers, relay)
        require(machine.same(source, Path(received["path"])), "what was received is not the source")
        shutil.rmtree(directory)
        stack.drop(sent["payload"])
        return megabytes_a_second(size, received["ended"] - sent["began"])

    def carry() -> float:
        began = time.monotonic()
        sent = tus_client.ask({"endpoint": tus.endpoint, "path": str(source)}, SECONDS)
        stored = tus.stored(sent["url"])
        between = time.monotonic()
        (nginx.root / "get.bin").unlink(missing_ok=True)
        (nginx.root / "get.bin").hardlink_to(stored)  # as if nginx served the directory of uploads
        seconds = between - began + curl.get(f"{nginx.url}/get.bin", saved)
        require(machine.same(source, saved), "curl received something else")
        saved.unlink()
        stored.unlink()
        return seconds

    def peer() -> float:
        seconds = float(costs.of("tus", lambda: {**tus.servers(), **nginx.servers()}, carry))
        return megabytes_a_second(size, seconds)

    found = bench.pairs(ours, peer, warm=4 * size, unit="MB/s")
    return Figure.compared(
        NAME, "MB/s", *found, more_is_better=True, must=MUST, cpu=costs.cpu, memory=costs.memory, quick=bench.plan.quick
    )
