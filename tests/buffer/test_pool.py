"""Sockets to Redis hold more than the system gives them, and never less."""

from __future__ import annotations

import socket

import pytest

from delivery.buffer.pool import SEND_ROOM_BYTES, give_room


def room(line: socket.socket) -> int:
    return line.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets")
def test_a_unix_socket_is_given_room() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        before = room(ours)
        give_room(ours)
        assert room(ours) > before


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets")
def test_one_that_has_more_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_ROOM_BYTES)
        before = room(ours)
        monkeypatch.setattr("delivery.buffer.pool.SEND_ROOM_BYTES", 65_536)
        give_room(ours)
        assert room(ours) == before


def test_tcp_finds_its_own_measure() -> None:
    with socket.socket() as line:
        before = room(line)
        give_room(line)
        assert room(line) == before
