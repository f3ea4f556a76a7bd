"""All parts of the stack: the order in which they start and stop, and when the whole is ready."""

from __future__ import annotations

import asyncio
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from delivery.launch import environment
from delivery.launch.console import Console
from delivery.launch.part import Keeper, Part
from delivery.launch.state import STOP_ORDER, Kind, Ledger
from delivery.launch.valkey import Valkey

VALKEY_SECONDS = 10.0
WEB_SECONDS = 60.0
WORKER_SECONDS = 10.0

#: Between SIGTERM and SIGKILL, in seconds. Web: uvicorn's own bound, on top of the time for closing every socket.
#: Worker: the tasks in hand, each at most one segment or range; sealing stops between two blocks.
GRACE: dict[Kind, float] = {"web": 10.0, "worker": 30.0, "beat": 5.0, "redis": 5.0}


@dataclass(frozen=True)
class Plan:
    """What a stack consists of. `valkey` is None where `REDIS_URL` names a Redis that is not ours.

    `drain_seconds` is how long a web process may take to close its sockets.
    """

    var: Path
    port: int
    workers: int
    concurrency: int
    pool: str
    drain_seconds: float
    valkey: Valkey | None

    def parts(self) -> list[Part]:
        """Return the parts in the order in which they start."""
        variables = environment.part_environment(var=self.var, redis_url=self.valkey.url if self.valkey else None)
        manage = (sys.executable, sys.argv[0])

        def part(name: str, kind: Kind, *command: str) -> Part:
            grace_seconds = GRACE[kind] + (self.drain_seconds if kind == "web" else 0.0)
            ready_words = " ready." if kind == "worker" else None
            return Part(name, kind, command, variables, grace_seconds, ready_words)

        def worker(name: str) -> Part:
            options = f"--name={name}", f"--concurrency={self.concurrency}", f"--pool={self.pool}"
            return part(name, "worker", *manage, "delivery_worker", *options)

        redis = [part("redis", "redis", *self.valkey.command())] if self.valkey else []
        workers = [worker(f"worker{number}") for number in range(1, self.workers + 1)]
        beat = part("beat", "beat", *manage, "delivery_beat")
        web = part("web", "web", *manage, "delivery_web", "--host=127.0.0.1", f"--port={self.port}")
        return [*redis, web, *workers, beat]


class Stack:
    """Runs a plan until a signal comes. One use, on one loop."""

    def __init__(self, plan: Plan, ledger: Ledger, console: Console) -> None:
        self._plan = plan
        self._console = console
        self._keepers = [Keeper(part, ledger, console) for part in plan.parts()]
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self, ready_text: str) -> int:
        """Start everything, say so, wait for SIGINT, SIGTERM or SIGHUP, stop everything; return the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        starting = asyncio.create_task(self._start())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done() and (trouble := starting.result()):
                self._console.say(trouble)
                return 1
            if starting.done():
                self._console.text(ready_text)
                await stopping
            return 0
        finally:
            starting.cancel()
            stopping.cancel()
            await self._stop_all()

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def _start(self) -> str | None:
        """Start the parts in order; return what went wrong, None once the web process answers and workers work."""
        valkey = self._plan.valkey
        for keeper in self._keepers:
            keeper.start()
            if keeper.part.kind == "redis" and valkey is not None:
                try:
                    await asyncio.wait_for(valkey.wait_ready(), VALKEY_SECONDS)
                except TimeoutError:
                    return f"Valkey does not answer at {valkey.socket} after {VALKEY_SECONDS:.0f} s"
        try:
            await asyncio.wait_for(_wait_answer(self._plan.port), WEB_SECONDS)
        except TimeoutError:
            return f"the web process does not answer on port {self._plan.port} after {WEB_SECONDS:.0f} s"
        # Workers only announce themselves in the log, which a site may have silenced: not a reason to give up.
        announced = [asyncio.ensure_future(keeper.ready.wait()) for keeper in self._keepers]
        await asyncio.wait(announced, timeout=WORKER_SECONDS)
        for waiting in announced:
            waiting.cancel()
        return None

    async def _stop_all(self) -> None:
        self._console.say("stopping")
        for kind in STOP_ORDER:
            keepers = [keeper for keeper in self._keepers if keeper.part.kind == kind]
            await asyncio.gather(*(keeper.stop(self._hurry) for keeper in keepers))
        self._console.say("stopped")


async def _wait_answer(port: int) -> None:
    """Return when something answers to HTTP on 127.0.0.1. Cancel it after a deadline of your own."""
    while not await _answers(port):
        await asyncio.sleep(0.05)


async def _answers(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        return (await reader.readline()).startswith(b"HTTP/")
    except OSError:
        return False
    finally:
        writer.close()
