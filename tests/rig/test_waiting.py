"""Deadlines: kept, named, and stretched on slow machines."""

from __future__ import annotations

import time

import pytest

from rig.waiting import slowed, until, wait_until


def test_what_was_waited_for_is_returned():
    looks = iter([0, "", [1]])
    assert wait_until(lambda: next(looks), what="list") == [1]


async def test_coroutines_wait_for_values_and_for_awaitables():
    looks = iter([0, "", [1], None, [2]])

    async def later() -> object:
        return next(looks)

    assert await until(lambda: next(looks), what="list") == [1]
    assert await until(later, what="list") == [2]


async def test_what_does_not_come_is_named():
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
        wait_until(lambda: False, what="answer", seconds=0.05)
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
        await until(lambda: False, what="answer", seconds=0.05)


def test_a_slow_machine_has_more_time(monkeypatch):
    monkeypatch.setenv("TEST_SLOWNESS", "3")
    assert slowed(2.0) == 6.0
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"within 0\.3 s"):
        wait_until(lambda: False, what="answer", seconds=0.1)
    assert time.monotonic() - began >= 0.3
