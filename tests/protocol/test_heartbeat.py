"""Pings after silence, and the end after too much of it. Times are seconds."""

from __future__ import annotations

import pytest

from delivery.protocol.heartbeat import Heartbeat


def pulse(*, pings: bool = True, server: bool = True) -> Heartbeat:
    beat = Heartbeat(20.0, now=100.0, server=server)
    beat.pings = pings
    return beat


def test_a_ping_comes_after_one_heartbeat_of_silence():
    beat = pulse()
    assert beat.ping(119.9) is None
    assert beat.ping(120.0).id == 1


def test_pings_come_one_heartbeat_apart_with_rising_ids():
    beat = pulse()
    beat.ping(120.0)
    assert beat.ping(139.9) is None
    assert beat.ping(140.0).id == 2


@pytest.mark.parametrize("silent", ["heard", "said"])
def test_either_silence_brings_a_ping_of_the_server(silent):
    beat = pulse()
    for name in {"heard", "said"} - {silent}:
        setattr(beat, name, 119.0)
    assert beat.ping(120.0) is not None


def test_only_its_own_silence_brings_a_ping_of_a_client():
    beat = pulse(server=False)
    beat.said = 119.0
    assert beat.ping(120.0) is None
    assert beat.wake_at() == 139.0
    beat.heard = 138.0
    assert beat.ping(139.0) is not None


def test_a_ping_out_of_turn_has_an_id_of_its_own():
    beat = pulse()
    assert beat.next_ping().id == 1
    assert beat.ping(120.0).id == 2


def test_a_busy_connection_is_not_pinged():
    beat = pulse()
    beat.heard = beat.said = 119.0
    assert beat.ping(138.9) is None
    assert beat.wake_at() == 139.0


def test_a_side_that_does_not_ping_never_pings():
    beat = pulse(pings=False)
    assert beat.ping(1_000.0) is None
    assert beat.wake_at() == 150.0


def test_silence_for_two_and_a_half_heartbeats_is_too_long():
    beat = pulse()
    assert not beat.silent(149.9)
    assert beat.silent(150.0)
    beat.heard = 130.0
    assert not beat.silent(179.9)


def test_it_wakes_for_the_ping_first():
    beat = pulse()
    assert beat.wake_at() == 120.0
    beat.ping(120.0)
    assert beat.wake_at() == 140.0
    beat.ping(140.0)
    assert beat.wake_at() == 150.0
