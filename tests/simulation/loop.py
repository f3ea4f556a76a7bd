"""An event loop whose time is virtual and whose every step is repeatable, with processes on it that can be killed.

Nothing waits: when no callback is ready, time jumps to the next timer. What belongs to a process is known by a context
variable, so that SIGKILL is exact: not one more step of it runs, no `finally` either.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
from asyncio.events import Handle, TimerHandle
from collections.abc import Callable
from typing import Any

START = 1_000.0
MOST_STEPS = 2_000_000


class Stuck(Exception):
    """Nothing will ever happen any more, or far too much does."""


class Proc:
    """A process on the loop: `kill`, `freeze` and `thaw` are its signals."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.frozen = False
        self.held: list[Handle] = []
        self.context = contextvars.copy_context()
        self.context.run(_running.set, self)

    def kill(self) -> None:
        self.dead = True
        self.held.clear()

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self, loop: SimulationLoop) -> None:
        self.frozen = False
        loop._ready.extend(self.held)  # type: ignore[attr-defined]
        self.held = []

    def start(self, loop: SimulationLoop, work: Any) -> asyncio.Task[Any]:
        """Run a coroutine as part of this process."""
        return loop.create_task(work, context=self.context)


_running: contextvars.ContextVar[Proc | None] = contextvars.ContextVar("process", default=None)


def running() -> Proc | None:
    """Return the process whose step this is."""
    return _running.get()


def _may_run(handle: Handle) -> bool:
    process = handle._context.get(_running)  # type: ignore[attr-defined]
    if process is None:
        return True
    if process.dead:
        return False
    if process.frozen:
        process.held.append(handle)
        return False
    return True


class _Step(Handle):
    def _run(self) -> None:
        if _may_run(self):
            super()._run()


class _Timer(TimerHandle):
    def _run(self) -> None:
        if _may_run(self):
            super()._run()


class _Task(asyncio.Task):  # type: ignore[type-arg]
    """Sets of tasks are walked in the order of their numbers, not of their addresses; each simulation has its own."""

    def __init__(self, *args: Any, number: int, **kwargs: Any) -> None:
        self._number = number
        super().__init__(*args, **kwargs)
        self._log_destroy_pending = False  # those of killed processes

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class SimulationLoop(asyncio.SelectorEventLoop):
    """`random` decides how long everything takes that a thread would do."""

    def __init__(self, chance: random.Random) -> None:
        self.now = START
        self.chance = chance
        self.steps = 0
        self.executor_faults: Callable[[Callable[..., Any]], Exception | None] = lambda function: None
        self.tasks: list[asyncio.Task[Any]] = []
        super().__init__(_Clock(self))  # type: ignore[arg-type]
        self.set_task_factory(self._make_task)

    def _make_task(self, loop: Any, work: Any, **options: Any) -> _Task:
        task = _Task(work, loop=loop, number=len(self.tasks), **options)
        self.tasks.append(task)
        return task

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Handle:
        step = _Step(callback, args, self, context)
        self._ready.append(step)  # type: ignore[attr-defined]
        return step

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> TimerHandle:
        timer = _Timer(when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def run_in_executor(self, executor: Any, function: Any, *args: Any) -> asyncio.Future[Any]:
        """Do a thread's work as one step, a little later; who asked hears of it a little after that."""
        future = self.create_future()
        # Once begun it goes on whatever happens to who asked, as a thread's statement in a database does.
        self.call_later(self.chance.expovariate(500), self._work, future, function, args)
        return future

    def _work(self, future: asyncio.Future[Any], function: Any, args: tuple[Any, ...]) -> None:
        error: BaseException | None = self.executor_faults(function)
        result = None
        if error is None:
            try:
                result = function(*args)
            except Exception as raised:  # noqa: BLE001 - handed on
                error = raised
        self.call_later(self.chance.expovariate(1000), _settle, future, result, error)

    def tidy(self) -> None:
        """Let go of what dead processes left, without running any of it for long."""
        for task in self.tasks:
            if not task.done():
                try:
                    task.get_coro().close()  # type: ignore[union-attr]
                except (RuntimeError, Exception):  # noqa: BLE001 - it wanted to wait in a `finally`
                    pass
        self.tasks.clear()
        self._ready.clear()  # type: ignore[attr-defined]
        self._scheduled.clear()  # type: ignore[attr-defined]


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


class _Clock:
    """Stands where the loop's selector would: waiting is the passing of virtual time."""

    def __init__(self, loop: SimulationLoop) -> None:
        self._loop = loop
        self._key: Any = None

    def select(self, timeout: float | None = None) -> list[Any]:
        loop = self._loop
        loop.steps += 1
        if timeout is None:
            raise Stuck("nothing will ever happen any more")
        if loop.steps > MOST_STEPS:
            raise Stuck(f"{MOST_STEPS} rounds, and no end")
        if timeout > 0:
            loop.now = max(loop.now, loop._scheduled[0]._when)  # type: ignore[attr-defined]
        return []

    def register(self, *args: Any) -> None:
        pass

    unregister = modify = register

    def get_key(self, *args: Any) -> Any:
        raise KeyError

    def get_map(self) -> dict[Any, Any]:
        return {}

    def close(self) -> None:
        pass
