"""Messages of 1 KiB a second among 20 clients in a ring, each with 16 on their way, against plain Channels group_send."""

from __future__ import annotations

from bench.bench import CHATTER, Bench, Costs
from bench.figures import Figure
from bench.moving import SECONDS
from bench.peers.channels_plain import PlainChannels

NAME = "inline_rate_vs_channels"
MUST = "0.25 (0.5)"
BYTES = 1024
CLIENTS = 20


def run(bench: Bench) -> Figure:
    costs = Costs()
    channels = bench.peer(PlainChannels)
    stack = bench.stack()
    tokens = stack.tokens(CLIENTS)
    chatter = bench.client(CHATTER)
    messages = {"size": BYTES, "seconds": bench.plan.scaled(10, 2)}

    def ours() -> float:
        request = {"do": "rate", "url": stack.url, "tokens": tokens, **messages}
        return float(costs.of("ours", stack.servers, lambda: chatter.ask(request, SECONDS))["rate"])

    def peer() -> float:
        request = {"do": "plain_rate", "url": channels.ws_url, "count": CLIENTS, **messages}
        return float(costs.of("channels", channels.servers, lambda: chatter.ask(request, SECONDS))["rate"])

    found = bench.pairs(ours, peer, warm=0, unit="messages/s")
    return Figure.compared(
        NAME,
        "messages/s",
        *found,
        more_is_better=True,
        must=MUST,
        cpu=costs.cpu,
        memory=costs.memory,
        quick=bench.plan.quick,
    )
