"""One Celery worker: its heartbeat, and the announcement of its shutdown (docs/explanation/architecture.md).

Celery reports a warm shutdown inside a signal handler, where no lock, log or client may be used. There a token is put into a
`SimpleQueue`, and a thread that was started before makes the announcement. A remote `shutdown` sends no such signal. But
Celery closes the worker's bootsteps in both cases, so our bootstep announces it too. A second announcement has no effect.
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
    """Return whether `worker` shuts down, so that long work can stop between its steps. Asks Redis; works in any pool process."""
    try:
        return registry.has_left(worker)
    except BufferUnavailable:
        return False


class Heartbeat:
    """Sends the heartbeat of this worker every few seconds, and once its drain. Two threads of the worker's main process,
    since an unresponsive Redis may block the one that beats.

    `stores`: the worker takes our short tasks. Transfers do not wait for a worker that only seals, but its sealing stops
    when it drains.
    """

    def __init__(self, worker: str, *, stores: bool = True) -> None:
        self.worker = worker
        self._stores = stores
        self._going: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._gone = threading.Event()
        self._told = threading.Event()
        self._speaking = threading.Lock()  # no heartbeat may follow the drain

    def start(self) -> None:
        threading.Thread(target=self._beat, name="delivery heartbeat", daemon=True).start()
        threading.Thread(target=self._wait_to_go, name="delivery drain", daemon=True).start()

    def go(self) -> None:
        """Announce the drain. Safe inside a signal handler, and more than once."""
        self._going.put(None)

    def wait_told(self) -> None:
        """Wait until the drain is announced, for at most 2 s, so that the shutdown is not delayed longer."""
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
        # First in Redis, then to every connection: one that then looks for live workers must not find this one. In a
        # thread, since an unresponsive Redis may block, and the channel layer may use another Redis.
        leaving = threading.Thread(target=self._say_gone, name="delivery leave", daemon=True)
        leaving.start()
        leaving.join(TELL_SECONDS / 2)
        try:
            notify.tell_group(notify.WORKERS, "worker_draining", worker=self.worker).result(TELL_SECONDS / 2)
        except concurrent.futures.TimeoutError:
            logger.warning("the channel layer does not take that this worker drains")

    def _end_stuck(self) -> None:
        """End the worker by force after `--end-after` seconds, if Redis does not answer.

        When Celery returns its unstarted tasks, it would otherwise wait for the broker's `socket_timeout`, several times.
        Nothing can be acked then, so nothing is lost. A worker that the site starts itself is not ended, nor is one whose
        Redis answers: it has tasks to finish.
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
    """Announces the drain when the worker's bootsteps are closed, for whatever reason."""

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
        # It would drop our tasks as unknown. Without a heartbeat, offers get `busy`, and `check --deploy` reports delivery.W003.
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
