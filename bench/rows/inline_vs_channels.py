"""A message of 1 KiB to one recipient, one at a time: p50 of plain Channels group_send divided by ours.

Ours is stored, announced, fetched and acked to its sender; plain Channels passes it on and keeps nothing. Both times end
when the recipient's program holds the message.
"""

from __future__ import annotations

from bench.bench import OUR_CLIENT, PLAIN_CLIENT, Bench, Costs
from bench.figures import Figure, percentile
from bench.moving import SECONDS
from bench.peers.channels_plain import PlainChannels

NAME = "inline_vs_channels"
MUST = "0.3 (0.6)"
BYTES = 1024


def run(bench: Bench) -> Figure:
    costs = Costs()
    count = bench.plan.scaled(500, 100)
    channels = bench.peer(PlainChannels)
    stack = bench.stack()
    our_client, plain_client = bench.client(OUR_CLIENT), bench.client(PLAIN_CLIENT)
    messages = {"do": "ping_pong", "size": BYTES, "count": count, "warm_up": 20}
    acked: list[float] = []

    def ours() -> float:
        request = {**messages, "url": stack.url, "tokens": stack.tokens(2)}
        answer = costs.of("ours", stack.servers, lambda: our_client.ask(request, SECONDS))
        acked.append(1000 * percentile(answer["acked"], 50))
        return 1000 * percentile(answer["seconds"], 50)

    def peer() -> float:
        request = {**messages, "url": channels.ws_url}
        answer = costs.of("channels", channels.servers, lambda: plain_client.ask(request, SECONDS))
        return 1000 * percentile(answer["seconds"], 50)

    found = bench.pairs(ours, peer, warm=0, unit="ms")
    return Figure.compared(
        NAME,
        "ms",
        *found,
        more_is_better=False,
        must=MUST,
        n=count * len(found[0]),
        cpu=costs.cpu,
        memory=costs.memory,
        notes={"acked_to_sender_ms": round(percentile(acked, 50), 2)},
        quick=bench.plan.quick,
    )
