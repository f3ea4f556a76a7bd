"""p99 of a 1 KiB message, sent to acked, while an upload of 1 GiB runs on the same socket through 100 Mbit/s."""

from __future__ import annotations

from bench.bench import MIB, OUR_CLIENT, THROTTLE, Bench
from bench.figures import Figure, percentile
from bench.machine import sparse_file

NAME = "small_beside_large_ms"
MUST = "<= 150 ms (80)"
RATE = 100e6 / 8
PAUSE_SECONDS = 0.05
SETTLE_SECONDS = 2.0


def run(bench: Bench) -> Figure:
    seconds = bench.plan.scaled(120, 10)
    source = sparse_file(bench.directory / "large.bin", 1024 * MIB)
    bench.room(2 * 1024 * MIB)
    stack = bench.stack()
    (token,) = stack.tokens(1)
    port = bench.client(THROTTLE).ask({"do": "proxy", "port": stack.port, "rate": RATE})["port"]
    request = {
        "do": "beside",
        "url": f"ws://127.0.0.1:{port}/ws/delivery/",
        "token": token,
        "path": str(source),
        "seconds": seconds,
        "settle": SETTLE_SECONDS,
        "pause": PAUSE_SECONDS,
    }
    answer = bench.client(OUR_CLIENT).ask(request, seconds + 60.0)
    waits = [1000 * wait for wait in answer["seconds"]]
    notes = {
        "p50_ms": round(percentile(waits, 50), 1),
        "most_ms": round(max(waits), 1),
        "large_share": round(answer["share"], 3),
        "large_MB_s": round(answer["share"] * 1024 * MIB / answer["elapsed"] / 1e6, 1),
    }
    bench.say(f"{len(waits)} messages: {notes}")
    return Figure.alone(
        NAME, "ms", [percentile(waits, 99)], n=len(waits), must=MUST, notes=notes, quick=bench.plan.quick
    )
