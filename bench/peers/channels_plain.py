"""Plain Channels: one consumer that relays by group_send, on uvicorn, over Debian's Redis."""

from __future__ import annotations

import sys

from bench.children import environment, wait_until
from bench.install import program
from bench.peers.server import READY_SECONDS, Server


class PlainChannels(Server):
    """`ws_url` with /<me>/<to> is a socket that joins the group `me` and relays every message to the group `to`."""

    name = "plain Channels"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    def _start(self) -> None:
        redis = self.directory / "redis.sock"
        command = [program("redis-server"), "--port", "0", "--unixsocket", redis, "--dir", self.directory]
        self._run("redis", [*command, "--save", "", "--appendonly", "no"])
        wait_until(redis.exists, READY_SECONDS, "redis-server")
        serve = [sys.executable, "-m", "uvicorn", "bench.peers.channels_app:app", f"--port={self.port}"]
        options = ["--loop=uvloop", "--ws=websockets-sansio", "--ws-per-message-deflate=false", "--lifespan=off"]
        quiet = ["--no-access-log", "--log-level=warning"]
        self._run("uvicorn", [*serve, *options, *quiet], environment(BENCH_REDIS=f"unix://{redis}"))
