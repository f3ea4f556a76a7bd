"""The site's policy is asked in threads of its own: who is slow is left behind, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from delivery.errors import Refused
from delivery.server import policy_threads
from delivery.server.policy_threads import MOST_OF_USER, THREADS, PolicyThreads


def run(function: Callable[[], None]) -> None:
    function()


@pytest.fixture
async def threads(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PolicyThreads]:
    monkeypatch.setattr(policy_threads, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(policy_threads, "SLOW_SECONDS", 0.02)
    threads = PolicyThreads(run)
    yield threads
    threads.stop()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a question that hangs waits for; opened at the end of the test."""
    gate = threading.Event()
    yield gate
    gate.set()


async def test_each_gets_its_own_answer(threads: PolicyThreads) -> None:
    asked = [threads.ask(number, "q", lambda number=number: number * 2) for number in range(200)]  # type: ignore[misc]
    assert await asyncio.gather(*asked) == [number * 2 for number in range(200)]


async def test_what_one_raises_is_its_own(threads: PolicyThreads) -> None:
    asked = [threads.ask(0, number, lambda number=number: 1 // number) for number in range(3)]  # type: ignore[misc]
    failed, *answers = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(failed, ZeroDivisionError)
    assert answers == [1, 0]


async def test_the_same_question_is_asked_once(threads: PolicyThreads) -> None:
    calls: list[None] = []
    asked = [threads.ask("alice", "q", lambda: calls.append(None)) for _ in range(50)]
    await asyncio.gather(*asked, threads.ask("bob", "q", lambda: None))
    assert len(calls) == 1


async def test_others_pass_by_one_that_hangs(threads: PolicyThreads, gate: threading.Event) -> None:
    hanging = asyncio.create_task(threads.ask("mallory", "hangs", gate.wait))
    await asyncio.sleep(0)
    assert await asyncio.gather(*(threads.ask(n, "q", lambda: "yes") for n in range(50))) == ["yes"] * 50
    with pytest.raises(Refused, match="does not answer") as refused:
        await hanging
    assert refused.value.code == "busy"


async def test_one_user_holds_two_threads_at_most(threads: PolicyThreads, gate: threading.Event) -> None:
    began: list[None] = []

    def hang() -> None:
        began.append(None)
        gate.wait()

    asked = [threads.ask("mallory", number, hang) for number in range(THREADS)]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(one, Refused) for one in outcomes)
    assert len(began) == MOST_OF_USER
    assert await threads.ask("alice", "q", lambda: "yes") == "yes"


async def test_when_all_threads_hang_everybody_is_told_and_later_served(
    threads: PolicyThreads, gate: threading.Event
) -> None:
    hanging = [threads.ask(number, "hangs", gate.wait) for number in range(THREADS)]
    outcomes = await asyncio.gather(*hanging, threads.ask("alice", "q", lambda: "yes"), return_exceptions=True)
    assert all(isinstance(one, Refused) for one in outcomes)
    gate.set()
    assert await threads.ask("alice", "q", lambda: "yes") == "yes"


async def test_a_thread_that_fails_fails_its_questions() -> None:
    def fail(function: Callable[[], None]) -> None:
        raise ConnectionError("no database")

    threads = PolicyThreads(fail)
    with pytest.raises(ConnectionError):
        await threads.ask("alice", "q", lambda: "yes")
    threads.stop()
