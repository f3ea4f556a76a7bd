"""A link of a given rate between one client and the server, each way: what a slow network does to a fast sender.

Its queue is short (a few socket buffers), as that of a link that is shared fairly; the client's own is the client's.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

from bench.clients.lines import Request, serve

BLOCK_BYTES = 16_384
SOCKET_BUFFER_BYTES = 65_536
BURST_SECONDS = 0.005


class Link:
    """One direction of a link: lets bytes through at `rate` bytes a second."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = 0.0

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what comes until `reader` ends or nobody takes it."""
        try:
            while block := await reader.read(BLOCK_BYTES):
                now = time.monotonic()
                self._free_at = max(now - BURST_SECONDS, self._free_at) + len(block) / self._rate
                if self._free_at > now + 0.001:
                    await asyncio.sleep(self._free_at - now)
                writer.write(block)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


def _short_buffers(one: socket.socket) -> socket.socket:
    one.setblocking(False)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    return one


async def proxy(request: Request) -> Any:
    """Listen, and pass connections on to `port` at `rate` bytes a second each way; return the port to connect to."""

    async def accept(from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        connection = _short_buffers(socket.socket())
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", request["port"]))
        from_server, to_server = await asyncio.open_connection(sock=connection, limit=BLOCK_BYTES)
        await asyncio.gather(
            Link(request["rate"]).pump(from_client, to_server), Link(request["rate"]).pump(from_server, to_client)
        )

    listener = _short_buffers(socket.socket())
    listener.bind(("127.0.0.1", 0))
    server = await asyncio.start_server(accept, sock=listener, limit=BLOCK_BYTES)
    _serving.append(server)
    return {"port": listener.getsockname()[1]}


_serving: list[asyncio.Server] = []

if __name__ == "__main__":
    serve({"proxy": proxy})
