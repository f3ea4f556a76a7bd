"""What the uploads, deliveries and connections of one client share: threads, background tasks, counters, the observer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from delivery.client.progress import Statistics
from delivery.protocol.backoff import Recovery

THREADS = 8
Observer = Callable[[str, dict[str, Any]], None]


class Runtime:
    """Belongs to the loop of its client. `pool`: the threads for files and digests.

    `work`: set where there may be something to send; the connection that lives waits for it. `proven`: called with a
    chunk size in bytes, once a guessed one got through.
    """

    def __init__(self, recovery: Recovery, observer: Observer | None, proven: Callable[[int], None]) -> None:
        self.recovery = recovery
        self.statistics = Statistics()
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="delivery-client")
        self.work = asyncio.Event()
        self._observer = observer
        self._proven = proven
        self._unfinished: set[asyncio.Future[Any]] = set()

    def wake(self) -> None:
        """Have the connection look at what is due to be sent."""
        self.work.set()

    def tell(self, event: str, **details: Any) -> None:
        """Tell the observer."""
        if self._observer is not None:
            self._observer(event, details)

    def progressed(self, chunk_bytes: int) -> None:
        """Note that a chunk of `chunk_bytes` got through: the backoff begins anew, and a guessed chunk size is proven."""
        if (proven := self.recovery.progressed(chunk_bytes)) is not None:
            self._proven(proven)

    def resumed(self, transfer: str, offset: int, role: str, *, reached: int) -> None:
        """Tell that a transfer goes on at `offset`, and how much goes again of what had reached `reached` before."""
        self.statistics.resumes += 1
        self.tell("resumed", transfer=transfer, offset=offset, role=role, again=max(0, reached - offset))

    # -- what goes on when those who asked for it have gone ----------------------------------------------------------

    def background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `work` beside everything else; closing the client waits for it."""
        task = asyncio.create_task(work)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # who waited may have gone
        return task

    async def keep_until_done(self, work: Coroutine[Any, Any, None]) -> None:
        """Await `work`, which goes on even if whoever waits for it is cancelled."""
        await asyncio.shield(self.background(work))

    @contextlib.contextmanager
    def kept_open(self) -> Iterator[None]:
        """Have closing the client, and its threads, wait for the body."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unfinished.add(ended)
        try:
            yield
        finally:
            self._unfinished.discard(ended)
            ended.set_result(None)

    async def close(self) -> None:
        """Wait for what runs beside, and let go of the threads."""
        while self._unfinished:
            await asyncio.wait(self._unfinished)
        self.pool.shutdown(wait=False, cancel_futures=True)
