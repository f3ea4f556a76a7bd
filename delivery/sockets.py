"""What both ends ask of their sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

# Python does not name it everywhere. https://lwn.net/Articles/560082/
TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25 if sys.platform == "linux" else None)


def queue_little(transport: asyncio.BaseTransport, unsent: int) -> None:
    """Have the kernel take at most `unsent` bytes ahead of the network: what is said last waits behind no more."""
    line = transport.get_extra_info("socket")
    if TCP_NOTSENT_LOWAT is not None and line is not None:
        with contextlib.suppress(OSError):  # a Unix socket has no such option
            line.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, unsent)
