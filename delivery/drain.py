"""Who is draining, and who lives: a worker's heartbeat, and what it tells when it shuts down.

Celery says so inside a signal handler, where no lock, log or client may be touched: there a token goes into a
`SimpleQueue`, and a thread that was started before does the telling (PLATFORM.md, "Celery on Redis").
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import Any

from celery import signals

from delivery.buffer import workers
from delivery.errors import BufferUnavailable

logger = logging.getLogger(__name__)

_draining = threading.Event()


def draining() -> bool:
    """Return whether this worker takes nothing new: long work stops between its steps."""
    return _draining.is_set()


class Heartbeat:
    """Says every few seconds that this worker lives. One thread of the worker's main process."""

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self._stopping: queue.SimpleQueue[None] = queue.SimpleQueue()

    def start(self) -> None:
        threading.Thread(target=self._run, name="delivery heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Say that it takes no more tasks. Safe inside a signal handler."""
        self._stopping.put(None)

    def _run(self) -> None:
        while True:
            try:
                workers.renew(self.worker)
            except BufferUnavailable as error:
                logger.warning("heartbeat: %s", error)
            try:
                self._stopping.get(timeout=workers.RENEW_SECONDS)
            except queue.Empty:
                continue
            self._leave()
            return

    def _leave(self) -> None:
        try:
            workers.leave(self.worker)
        except BufferUnavailable as error:
            logger.warning("leaving: %s", error)


_heartbeat: Heartbeat | None = None


def connect() -> None:
    """Listen to Celery's signals; called once by the app's configuration."""
    signals.worker_ready.connect(_on_ready, dispatch_uid="delivery.drain")
    signals.worker_shutting_down.connect(_on_shutting_down, dispatch_uid="delivery.drain")


def _on_ready(sender: Any = None, **_ignored: Any) -> None:
    global _heartbeat
    _heartbeat = Heartbeat(str(sender.hostname))
    _heartbeat.start()


def _on_shutting_down(**_ignored: Any) -> None:
    if _heartbeat is not None:
        _heartbeat.stop()
