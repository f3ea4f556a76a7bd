"""Nothing leads to another stack of this machine: no variable, no port."""

from __future__ import annotations

import socket

from rig.environment import free_port, listens, own_environment


def test_what_configures_another_stack_is_left_out(monkeypatch):
    for name in ("REDIS_URL", "DATABASE_URL", "DELIVERY_VAR", "CELERY_BROKER_URL", "SECRET_KEY", "PORT"):
        monkeypatch.setenv(name, "production")
    monkeypatch.setenv("HOME", "/home/someone")
    environment = own_environment(PORT="1")
    assert "production" not in environment.values()
    assert (environment["PORT"], environment["HOME"]) == ("1", "/home/someone")


def test_a_free_port_can_be_listened_on():
    port = free_port()
    assert not listens(port)
    with socket.create_server(("127.0.0.1", port)):
        assert listens(port)


def test_workers_of_a_test_run_draw_from_ranges_of_their_own(monkeypatch):
    ranges = []
    for worker in ("gw0", "gw1"):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        ranges.append(free_port() // 1000)
    assert ranges[0] != ranges[1]
