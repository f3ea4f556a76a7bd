"""An upload of 10 GiB from a sparse file, then its delivery: the largest growth of web, worker or Redis memory.

The recipient hashes what comes and drops it. Storage keeps all of it: 10 GiB of disk are needed.
"""

from __future__ import annotations

from bench.bench import MIB, OUR_CLIENT, Bench, require
from bench.figures import Figure
from bench.machine import sparse_file
from bench.meter import MemorySampler
from bench.moving import sha256_of

NAME = "memory_10gib"
MUST = "<= 100 MiB (64)"
SECONDS = 900.0


def run(bench: Bench) -> Figure:
    size = bench.plan.scaled(10 * 1024, 512) * MIB
    bench.room(size)
    source = sparse_file(bench.directory / "sparse.bin", size)
    stack = bench.stack()
    tokens = stack.tokens(2)
    sender, recipient = bench.client(OUR_CLIENT), bench.client(OUR_CLIENT)
    recipient.ask({"do": "receive", "url": stack.url, "token": tokens[1]})
    upload = {"do": "upload", "url": stack.url, "token": tokens[0], "path": str(source), "to": ["user:bench1"]}
    with MemorySampler(stack.servers()) as memory:
        sent = sender.ask(upload, SECONDS)
        received = recipient.hear(SECONDS)
    require(sent["sha256"] == received["sha256"] == sha256_of(source), "what was received is not the source")
    stack.drop(sent["payload"])
    growth = memory.growth_mib()
    notes = {
        **growth,
        "upload_s": round(sent["ended"] - sent["began"], 1),
        "delivery_s": round(received["ended"] - received["began"], 1),
        "gib": size / 1024**3,
    }
    bench.say(str(notes))
    return Figure.alone(NAME, "MiB", [max(growth.values())], must=MUST, notes=notes, quick=bench.plan.quick)
