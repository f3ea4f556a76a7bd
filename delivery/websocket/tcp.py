"""What both ends ask of their sockets."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
import sys

# Python does not name it everywhere. https://lwn.net/Articles/560082/
TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25 if sys.platform == "linux" else None)

TCP_CONGESTION = getattr(socket, "TCP_CONGESTION", None)  # Linux
UNPACED = b"reno"  # every Linux has it, and lets everybody choose it

TCP_INFO = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
ROUND_TRIP_AT = 68  # in Linux's `struct tcp_info`: u32 microseconds, smoothed
BYTES_ACKED_AT = 120  # u64; since Linux 4.1

# A Unix socket has no such option; and a socket may be closed by now, of which uvloop makes a ValueError.
NO_SUCH_OPTION = (OSError, ValueError)


def queue_little(transport: asyncio.BaseTransport, unsent: int) -> None:
    """Have the kernel take at most `unsent` bytes ahead of the network: what is said last waits behind no more."""
    line = transport.get_extra_info("socket")
    if TCP_NOTSENT_LOWAT is not None and line is not None:
        with contextlib.suppress(*NO_SUCH_OPTION):
            line.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, unsent)


def pace_nothing_locally(transport: asyncio.BaseTransport) -> None:
    """Send without timers to a peer on this machine, where there is no network to be gentle with.

    Where the system's default is BBR, it arms a timer for every few segments, which costs a tenth of an upload.
    """
    line, peer = transport.get_extra_info("socket"), transport.get_extra_info("peername")
    if TCP_CONGESTION is None or line is None or not isinstance(peer, tuple):
        return
    if ipaddress.ip_address(peer[0].partition("%")[0]).is_loopback:
        with contextlib.suppress(*NO_SUCH_OPTION):
            line.setsockopt(socket.IPPROTO_TCP, TCP_CONGESTION, UNPACED)


def round_trip(transport: asyncio.BaseTransport) -> float | None:
    """Return the seconds to the peer and back as TCP measured them lately, None where the system does not say."""
    micros = _tcp_info(transport, ROUND_TRIP_AT, "=I")
    return micros / 1e6 if micros else None


def bytes_acked(transport: asyncio.BaseTransport) -> int | None:
    """Return how many bytes the peer's TCP has acknowledged in all, None where the system does not say."""
    return _tcp_info(transport, BYTES_ACKED_AT, "=Q")


def _tcp_info(transport: asyncio.BaseTransport, at: int, kind: str) -> int | None:
    """Return one number of Linux's `struct tcp_info`; `kind` is its format in `struct`."""
    line = transport.get_extra_info("socket")
    if TCP_INFO is None or line is None:
        return None
    try:
        info: bytes = line.getsockopt(socket.IPPROTO_TCP, TCP_INFO, at + struct.calcsize(kind))
        (number,) = struct.unpack_from(kind, info, at)
    except (*NO_SUCH_OPTION, struct.error):
        return None
    return int(number)
