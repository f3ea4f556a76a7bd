"""The threads in which one web process calls the site's policy about offers and groups. None of them writes.

The policy is the site's own code: it may be slow, raise, or never return. One thread serves all calls while they are quick.
A slow call keeps its thread, and the other calls continue in a new one. No caller waits longer than `ANSWER_SECONDS`, and no
user holds more than `MOST_OF_USER` threads.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from delivery.errors import Refused

logger = logging.getLogger(__name__)

T = TypeVar("T")

THREADS = 8
MOST_OF_USER = 2
MOST_AT_ONCE = 64  # questions that go to the thread together
SLOW_SECONDS = 0.1  # that a thread may take until the questions behind are given to another one
ANSWER_SECONDS = 5.0
RETRY_AFTER = 5.0


class _Question:
    def __init__(self, user: Any, key: Hashable, ask: Callable[[], Any]) -> None:
        self.user, self.key, self.ask = user, key, ask
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.answer.add_done_callback(lambda done: done.cancelled() or done.exception())


class _Job:
    """Questions that one thread is asked in turn. Its deque and its list are all that both sides touch."""

    def __init__(self, questions: list[_Question]) -> None:
        self.all = list(questions)
        self.questions = deque(questions)
        self.answered: list[tuple[_Question, Any, Exception | None]] = []
        self.begun: _Question | None = None

    def run(self) -> None:
        """Ask one after the other, in the thread."""
        while self.questions:
            try:
                question = self.questions.popleft()
            except IndexError:  # taken back in this moment
                return
            self.begun = question
            try:
                self.answered.append((question, question.ask(), None))
            except Exception as error:  # noqa: BLE001 - it is this question's alone
                self.answered.append((question, None, error))

    def take_back(self) -> list[_Question]:
        """Return the questions that are not begun; the thread does not ask them any more."""
        back = []
        while self.questions:
            try:
                back.append(self.questions.popleft())
            except IndexError:  # begun in this moment
                break
        self.all = [one for one in self.all if one not in back]
        return back


class PolicyThreads:
    """Asks questions in threads of its own. All methods belong to one event loop.

    `run`: calls a function in a thread as one that may query the database.
    """

    def __init__(self, run: Callable[[Callable[[], None]], None]) -> None:
        self._run = run
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="delivery-policy")
        self._waiting: dict[Hashable, _Question] = {}
        self._behind: Counter[Any] = Counter()  # threads that are left behind, by user
        self._lane: asyncio.Task[None] | None = None

    async def ask(self, user: Any, key: Hashable, question: Callable[[], T]) -> T:
        """Return what `question`, about `user` (a primary key), returns in a thread, or raise what it raises.

        Whoever asks the same (`key`) before it is begun gets the same answer. Raises `Refused` with `busy` where it takes
        longer than 5 s: it then runs on, and nobody waits for it. Cancelling leaves it running as well.
        """
        found = self._waiting.get((user, key))
        if found is None:
            found = self._waiting[user, key] = _Question(user, (user, key), question)
            self._go()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answer: T = await asyncio.shield(found.answer)
                return answer
        except TimeoutError:
            if self._waiting.get((user, key)) is found:  # not even begun
                del self._waiting[user, key]
            logger.error("the site's policy has not answered for %s s about user %s", ANSWER_SECONDS, user)
            raise Refused("busy", "the site's policy does not answer", retry_after=RETRY_AFTER) from None

    def stop(self) -> None:
        """Ask nothing more. A thread that is left behind ends when the policy answers."""
        if self._lane is not None:
            self._lane.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _go(self) -> None:
        if self._waiting and (self._lane is None or self._lane.done()):
            self._lane = asyncio.create_task(self._ask_all(), name="delivery policy")

    async def _ask_all(self) -> None:
        while self._behind.total() < THREADS and (questions := self._next()):
            job = _Job(questions)
            asked = asyncio.get_running_loop().run_in_executor(self._executor, self._run, job.run)
            await asyncio.wait({asked}, timeout=SLOW_SECONDS)
            if not asked.done():
                self._leave_behind(job, asked)
            _settle(job, asked)

    def _next(self) -> list[_Question]:
        free = (one for one in self._waiting.values() if self._behind[one.user] < MOST_OF_USER)
        questions = [one for one, _ in zip(free, range(MOST_AT_ONCE), strict=False)]
        for one in questions:
            del self._waiting[one.key]
        return questions

    def _leave_behind(self, job: _Job, asked: asyncio.Future[None]) -> None:
        """Give what the thread has not begun to the next one."""
        back = {one.key: one for one in job.take_back()}
        self._waiting = back | self._waiting
        user = job.begun.user if job.begun is not None else None
        self._behind[user] += 1
        asked.add_done_callback(lambda done: self._returned(job, user, done))

    def _returned(self, job: _Job, user: Any, asked: asyncio.Future[None]) -> None:
        self._behind[user] -= 1
        if not self._behind[user]:
            del self._behind[user]
        _settle(job, asked)
        self._go()


def _settle(job: _Job, asked: asyncio.Future[None]) -> None:
    """Hand out the answers that there are; where the thread itself failed, its failure to all who wait for it."""
    while job.answered:
        _set(*job.answered.pop())
    if asked.done() and not asked.cancelled() and (error := asked.exception()) is not None:
        for question in job.all:
            _set(question, None, error)


def _set(question: _Question, answer: Any, error: BaseException | None) -> None:
    if question.answer.done():
        return
    if error is None:
        question.answer.set_result(answer)
    else:
        question.answer.set_exception(error)
