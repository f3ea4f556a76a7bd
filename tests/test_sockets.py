"""What both ends ask of their sockets."""

from __future__ import annotations

import asyncio
import socket

import pytest
import uvloop

from delivery.websocket import tcp

TCP_CONGESTION = getattr(socket, "TCP_CONGESTION", None)
pytestmark = pytest.mark.skipif(TCP_CONGESTION is None, reason="the platform lets nobody choose")


class Line:
    """A transport of `line`, whose peer is said to be at `peer`."""

    def __init__(self, line: socket.socket, peer: object) -> None:
        self.extra = {"socket": line, "peername": peer}

    def get_extra_info(self, name: str) -> object:
        return self.extra[name]


def congestion_control(line: socket.socket) -> bytes:
    return line.getsockopt(socket.IPPROTO_TCP, TCP_CONGESTION, 16).rstrip(b"\0")


@pytest.mark.parametrize(
    ("peer", "unpaced"),
    [
        (("127.0.0.1", 80), True),
        (("127.0.1.1", 80), True),
        (("::1", 80, 0, 0), True),
        (("192.0.2.7", 80), False),
        (("fe80::1%eth0", 80, 0, 2), False),
        ("/run/a.sock", False),
        (None, False),
    ],
)
def test_nothing_is_paced_to_a_peer_on_this_machine_only(
    peer: object, unpaced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as line:
        default = congestion_control(line)
        other = b"cubic" if default == b"reno" else b"reno"
        monkeypatch.setattr(tcp, "UNPACED", other)
        tcp.pace_nothing_locally(Line(line, peer))
        assert congestion_control(line) == (other if unpaced else default)


def test_the_round_trip_on_this_machine_is_short() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as line:
        seconds = tcp.round_trip(Line(line, server.getsockname()))
        assert seconds is not None
        assert 0 < seconds < 0.5
    assert tcp.round_trip(Line(line, None)) is None  # closed


def test_what_has_no_network_has_no_round_trip() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert tcp.round_trip(Line(one, None)) is None
    assert tcp.round_trip(Line(None, None)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_connection_that_closed_meanwhile_is_asked_nothing(run) -> None:
    async def ask() -> None:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, *address)
        assert tcp.round_trip(transport) is not None
        transport.abort()
        await asyncio.sleep(0.05)
        assert tcp.round_trip(transport) is None
        tcp.queue_little(transport, 4096)
        tcp.pace_nothing_locally(transport)
        server.close()

    run(ask())
