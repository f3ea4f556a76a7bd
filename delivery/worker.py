"""One Celery worker: its heartbeat, and what it announces when it shuts down (docs/explanation/architecture.md).

Celery announces a warm shutdown inside a signal handler, where no lock, log or client may be touched. There a token goes
into a `SimpleQueue`, and a thread that was started before makes the announcement. A remote `shutdown` sends no such
signal, but Celery closes the worker's bootsteps in both cases, so a bootstep of ours announces it too. Announcing it twice
changes nothing.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import billiard
from celery import bootsteps, signals

from delivery import dispatch, notify
from delivery.buffer import pool, registry
from delivery.errors import BufferUnavailable

logger = logging.getLogger(__name__)

TELL_SECONDS = 2.0
END_AFTER = "DELIVERY_END_AFTER"  # of the environment, in seconds; set by `manage.py delivery_worker`


def draining(worker: str) -> bool:
    """Return whether `worker` shuts down: long work stops between its steps. Asks Redis, for any process of the pool."""
    try:
        return registry.has_left(worker)
    except BufferUnavailable:
        return False


class Heartbeat:
    """Says every few seconds that this worker lives, and once that it goes. Two threads of the worker's main process: a
    Redis that does not answer may hold the one that beats.

    `stores`: it takes our short tasks. One that only seals is no worker for transfers to wait for, but its sealing is to
    stop when it drains.
    """

    def __init__(self, worker: str, *, stores: bool = True) -> None:
        self.worker = worker
        self._stores = stores
        self._going: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._gone = threading.Event()
        self._told = threading.Event()
        self._speaking = threading.Lock()  # nothing may say that it lives after it was said that it goes

    def start(self) -> None:
        threading.Thread(target=self._beat, name="delivery heartbeat", daemon=True).start()
        threading.Thread(target=self._wait_to_go, name="delivery drain", daemon=True).start()

    def go(self) -> None:
        """Say that it takes no more tasks. Safe inside a signal handler, and more than once."""
        self._going.put(None)

    def wait_told(self) -> None:
        """Wait until that is said, for 2 s at most: a shutdown waits for nobody longer."""
        self._told.wait(TELL_SECONDS)

    def _beat(self) -> None:
        self._say_alive()
        if self._stores and not self._gone.is_set():
            notify.tell_group(notify.WORKERS, "worker_ready", worker=self.worker)
        while not self._gone.wait(registry.RENEW_SECONDS):
            self._say_alive()

    def _say_alive(self) -> None:
        with self._speaking:
            if not self._gone.is_set():
                self._attempt(registry.renew_worker if self._stores else registry.unmark_left, "heartbeat")

    def _wait_to_go(self) -> None:
        self._going.get()
        self._gone.set()
        self._leave()
        self._told.set()
        self._end_stuck()

    def _say_gone(self) -> None:
        with self._speaking:
            self._attempt(registry.remove_worker, "draining is told late or not at all")

    def _attempt(self, change: Callable[[str], None], what: str) -> None:
        try:
            change(self.worker)
        except BufferUnavailable as error:
            logger.warning("%s: %s", what, error)

    def _leave(self) -> None:
        # First into Redis, then to everybody: who hears of it and looks who is left must not find this worker. In a
        # thread, since a Redis that does not answer may take long and the channel layer's may be another one.
        leaving = threading.Thread(target=self._say_gone, name="delivery leave", daemon=True)
        leaving.start()
        leaving.join(TELL_SECONDS / 2)
        try:
            notify.tell_group(notify.WORKERS, "worker_draining", worker=self.worker).result(TELL_SECONDS / 2)
        except concurrent.futures.TimeoutError:
            logger.warning("the channel layer does not take that this worker drains")

    def _end_stuck(self) -> None:
        """End the worker by force, after the time that `delivery_worker` was given, where Redis does not answer.

        Celery would wait for it, when it gives back what it has not begun, for as long as its broker's `socket_timeout`
        allows, several times. Nothing can be acked then, so nothing is lost. A worker that the site starts itself is left
        alone, and so is one whose Redis answers: it has tasks to finish.
        """
        seconds = os.environ.get(END_AFTER)
        if seconds is None:
            return
        time.sleep(float(seconds))
        while pool.answers() or pool.answers():
            time.sleep(1.0)
        logger.error("Redis does not answer %s s after the signal; ending anyway", seconds)
        for child in billiard.active_children():
            child.terminate()
        os._exit(1)


class DrainStep(bootsteps.StartStopStep):
    """Tells that the worker drains when its bootsteps are closed, whatever asked for it."""

    def close(self, parent: Any) -> None:
        if _heartbeat is not None:
            _heartbeat.go()
            _heartbeat.wait_told()


_heartbeat: Heartbeat | None = None


def connect() -> None:
    """Listen to Celery's signals; called once by the app's configuration. No option of the site's app is changed."""
    signals.celeryd_init.connect(_on_init, dispatch_uid="delivery.drain")
    signals.worker_ready.connect(_on_ready, dispatch_uid="delivery.drain")
    signals.worker_shutting_down.connect(_on_shutting_down, dispatch_uid="delivery.drain")


def _on_init(instance: Any = None, **_ignored: Any) -> None:
    instance.app.steps["worker"].add(DrainStep)


def _on_ready(sender: Any = None, **_ignored: Any) -> None:
    """Begin the heartbeat, unless this worker takes none of our tasks."""
    global _heartbeat
    consumed = sender.app.amqp.queues.consume_from
    stores = dispatch.queue_of(dispatch.STORE) in consumed
    if not stores and dispatch.queue_of(dispatch.SEAL) not in consumed:
        logger.info("this worker does not consume %r, the queue of delivery's tasks", dispatch.queue_of(dispatch.STORE))
        return
    if dispatch.STORE not in sender.app.tasks:
        # It would throw each one away. Without a heartbeat, offers get `busy`, and `check --deploy` says delivery.W003.
        logger.error(
            "this worker does not know the task %s: app.autodiscover_tasks() is missing where the Celery app is made",
            dispatch.STORE,
        )
        return
    _heartbeat = Heartbeat(str(sender.hostname), stores=stores)
    _heartbeat.start()


def _on_shutting_down(**_ignored: Any) -> None:
    if _heartbeat is not None:
        _heartbeat.go()
