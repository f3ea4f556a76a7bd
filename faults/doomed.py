"""The Celery app of stacks whose workers die at a step that a trial has planned: `CELERY_APP=faults.doomed`.

The project's own app. In each process that runs tasks some functions of `delivery` get a step before or after them,
at which the process looks whether it is planned to die here; it then kills itself, or its parent, with SIGKILL. The product
knows nothing of it, and does everything that it does otherwise.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from celery.signals import worker_process_init, worker_ready

from faults.steps import Plan
from project.celery import app

__all__ = ["app"]

#: As long as a child stays where it has killed its parent: the launcher kills what is left of the worker meanwhile.
STAY_SECONDS = 5.0
Wanted = Callable[..., bool]


class _Doing(threading.local):
    task = ""  # that this thread runs: one at a time
    putting = False  # inside `blocks.put`


_doing = _Doing()


def _always(*_arguments: Any, **_named: Any) -> bool:
    return True


@worker_ready.connect  # its tasks may run in threads of its own
@worker_process_init.connect
def _arm(**_ignored: Any) -> None:
    from delivery import notify
    from delivery.buffer import blocks, chunks, exchange, keys
    from delivery.storage import files
    from delivery.transfers import digests, outcomes, ranges, segments, uploads

    if hasattr(segments.store, "__wrapped__"):  # forked from a main process that has them
        return
    _run(segments, "store")
    _run(ranges, "stage")
    _run(digests, "seal")

    _fetch(chunks)
    _after(files, "write", "the file written, no row yet")
    _after(uploads, "lock_under", "the transfer locked")
    _after(segments, "_advance", "the row written, not committed")
    _before(notify, "waking", "committed, nobody woken", lambda _payload, event, **_rest: event == "stored")
    _before(digests, "hash_ahead", "woken, not hashed yet")
    _after(digests.Hashed, "add", "a segment hashed, the state in hand")
    _unless(digests, "of_whole", Plan.seals, "all hashed, the last segment has no row yet")

    _before(blocks, "put", "before the file is read")
    _each(ranges, "_blocks", "a block read")
    _after(exchange.Exchange, "send_value", "some blocks in Redis")
    _put(blocks)
    _before(keys, "range_checksums", "all blocks in Redis, their checksums not", lambda *_: _doing.putting)
    _after(blocks, "put", "all in Redis, nobody woken")

    _after(digests, "_claim", "claimed")
    _unless(digests, "resume_hashed", Plan.forgets, "what was hashed ahead in hand")
    _after(digests._Pulse, "__call__", "between two blocks")
    _before(outcomes, "complete", "the digest known, nothing written")
    _after(outcomes, "complete_locked", "complete, not committed")
    _before(outcomes, "_announce", "committed, nobody told")
    _after(outcomes, "_announce", "all told", _while("seal"))


def _while(task: str) -> Wanted:
    return lambda *_arguments, **_named: _doing.task == task


def _reach(step: str) -> None:
    """Die here, if that is the plan."""
    pid = _plan().reach(f"{_doing.task}: {step}")
    if pid is None:
        return
    os.kill(pid, signal.SIGKILL)
    time.sleep(STAY_SECONDS)  # where that was the parent


@functools.cache
def _plan() -> Plan:
    return Plan(Path(os.environ["DELIVERY_VAR"]))


# -- wrapping --------------------------------------------------------------------------------------------------------


def _run(module: Any, name: str) -> None:
    """Make a function the task `name`."""
    inner = getattr(module, name)

    @functools.wraps(inner)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        _doing.task = name
        try:
            _reach("begun")
            result = inner(*arguments, **named)
            _reach("done" if name == "seal" else "done, the task not acked")
            return result
        finally:
            _doing.task = ""

    setattr(module, name, wrapped)


def _before(owner: Any, name: str, step: str, wanted: Wanted = _always) -> None:
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        if wanted(*arguments, **named):
            _reach(step)
        return inner(*arguments, **named)

    setattr(owner, name, wrapped)


def _after(owner: Any, name: str, step: str, wanted: Wanted = _always) -> None:
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        result = inner(*arguments, **named)
        if wanted(*arguments, **named):
            _reach(step)
        return result

    setattr(owner, name, wrapped)


def _each(owner: Any, name: str, step: str) -> None:
    """Put a step behind each item that a generator gives: it is dealt with by then."""
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def wrapped(*arguments: Any, **named: Any) -> Iterator[Any]:
        for item in inner(*arguments, **named):
            yield item
            _reach(step)

    setattr(owner, name, wrapped)


def _fetch(chunks: Any) -> None:
    _each(chunks, "fetch", "a piece of the file written")
    inner = chunks.fetch

    @functools.wraps(inner)
    def wrapped(*arguments: Any, **named: Any) -> Iterator[Any]:
        _reach("before the fetch")
        yield from inner(*arguments, **named)

    chunks.fetch = wrapped


def _put(blocks: Any) -> None:
    inner = blocks.put

    @functools.wraps(inner)
    def wrapped(*arguments: Any, **named: Any) -> None:
        _doing.putting = True
        try:
            inner(*arguments, **named)
        finally:
            _doing.putting = False

    blocks.put = wrapped


def _unless(module: Any, name: str, planned: Callable[[Plan], bool], step: str) -> None:
    """Give a function a step behind it; where the plan says so it finds nothing, and what comes instead is to be struck."""
    inner = getattr(module, name)

    @functools.wraps(inner)
    def wrapped(*arguments: Any) -> Any:
        result = None if planned(_plan()) else inner(*arguments)
        _reach(step)
        return result

    setattr(module, name, wrapped)
