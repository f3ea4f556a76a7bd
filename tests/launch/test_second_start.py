"""A second start on the same directory: it finds its state again, and ends what a killed launcher left."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from delivery.launch import valkey
from tests.launch.live import LiveStack, alive


@dataclass(frozen=True)
class Starts:
    """The first launcher was killed with SIGKILL, the second runs."""

    first_pids: list[int]
    first_passwords: str
    first_secret: str
    first_socket: Path
    second: LiveStack


def socket_of(stack: LiveStack) -> Path:
    return Path((stack.var / "redis.url").read_text().removeprefix("unix://").partition("?")[0])


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starts]:
    # So long a path that no socket fits into it.
    var = tmp_path_factory.mktemp("second") / ("a" * 120)
    first = LiveStack(var).wait_ready()
    first.process.send_signal(signal.SIGKILL)
    first.process.wait(10)
    pids, socket = first.all_pids(), socket_of(first)
    assert all(alive(pid) for pid in pids)
    passwords, secret = ((var / name).read_text() for name in ("passwords", "secret_key"))
    second = LiveStack(var, port=first.port)
    try:
        yield Starts(pids, passwords, secret, socket, second.wait_ready())
    finally:
        second.stop()


def test_leftovers_of_a_killed_launcher_are_ended(starts: Starts) -> None:
    assert not any(alive(pid) for pid in starts.first_pids)
    assert starts.second.said(r"ended web \(\d+\), left by an earlier start")
    assert starts.second.answers()


def test_passwords_and_secret_stay(starts: Starts) -> None:
    assert (starts.second.var / "passwords").read_text() == starts.first_passwords
    assert (starts.second.var / "secret_key").read_text() == starts.first_secret


def test_socket_that_is_too_long_moves_to_a_private_directory(starts: Starts) -> None:
    socket = socket_of(starts.second)
    assert len(str(socket).encode()) <= valkey.SOCKET_PATH_BYTES
    assert socket.exists()
    assert socket.parent.stat().st_mode & 0o777 == 0o700


def test_temporary_directory_of_the_killed_start_is_gone(starts: Starts) -> None:
    assert starts.first_socket != socket_of(starts.second)
    assert not starts.first_socket.parent.exists()


def test_temporary_directory_is_gone_after_stopping(starts: Starts) -> None:
    socket = socket_of(starts.second)
    assert starts.second.stop() == 0
    assert not socket.parent.exists()
