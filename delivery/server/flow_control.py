"""The credit of all uploads of a web process: together they never have more bytes in Redis than the budget.

While all windows fit into the budget, each upload has its window. Otherwise each gets an equal share. If not even one chunk
per upload fits, credit is given in turns: first to the user who holds least, and of that user to the upload that waited
longest. An upload that has used its credit queues again. A small rest of an upload is granted at once, if there is room, so
that one task stores it. One user's uploads get at most three quarters of the budget, so that unused credit cannot stop
others.

Until an upload's speed is known, its whole credit counts against the budget. After that, the bytes count that it will
probably send before they are stored: slow uploads have little in Redis, however much they may send. If they all speed up,
uploads with more than an equal share in Redis wait.

New uploads that one task can store begin a few at a time (`short_uploads`). An upload that waits only for that delays no other.

Pure: no clock, task or I/O. Time comes in as monotonic seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from delivery.protocol.receiver import Receiver
from delivery.server.credit_queue import CreditQueue
from delivery.server.short_uploads import ShortUploads

LOOK_SECONDS = 0.5
#: So much of what comes at an upload's speed may be in Redis: storing begins after 2 s, and takes its time.
AHEAD_SECONDS = 4.0


@dataclass(slots=True)
class _Account:
    """One upload: whose it is, what it counts for, in bytes, and how its session is told that its credit grew.

    `short`: one task could store what was left of it as it began. `speed` in bytes a second, None until it is known;
    measured from the time `since`, and chunk `first`, on.
    """

    user: Any
    changed: Callable[[], None]
    short: bool
    stored_bytes: int  # when it last moved
    outstanding: int = 0
    of_new: int = 0  # what it counts for among new short uploads: nothing once its speed is known
    yields: bool = False  # gets no more while others wait
    speed: float | None = None
    since: float | None = None
    first: int = 0


class CreditLedger:
    """The budget of one web process, in bytes. Belongs to its event loop.

    `segment`: what one task stores at most. `workers` returns how many live.
    """

    def __init__(self, budget: int, window: int, segment: int = 0, workers: Callable[[], int] = lambda: 1) -> None:
        self.budget = budget
        self._window = window
        self._segment = segment
        self._total = 0
        self._of_user: Counter[Any] = Counter()
        self._over = False  # more than the budget is in Redis
        self._accounts: dict[Receiver, _Account] = {}
        self._queue = CreditQueue()  # for room in the budget
        self._short = ShortUploads(segment, workers)

    def window(self) -> int:
        """Return the window in bytes of one more upload."""
        return self._share(len(self._accounts) + 1)

    def _share(self, among: int) -> int:
        return min(self._window, self._most_of_one, self.budget // among)

    @property
    def _most_of_one(self) -> int:
        return 3 * self.budget // 4

    def _has_room(self, user: Any, wanted: int) -> bool:
        """Return whether `user` may have `wanted` bytes more. Alone, even a chunk above the budget has its turn."""
        if self._total + wanted > self.budget and self._total > 0:
            return False
        return self._of_user[user] + wanted <= self._most_of_one or self._of_user[user] == 0

    def fits(self, receiver: Receiver, stored: int, user: Any) -> bool:
        """Return whether an upload of `user` that goes on from byte `stored` gets credit at once, or has to wait for it."""
        wanted = _useful(max(receiver.chunk_size, self.window()), receiver, stored)
        if self._short.includes(receiver, stored) and (self._short.waiting or not self._short.may_begin(wanted)):
            return False
        return not self._queues_for_room(user) and self._has_room(user, wanted)

    def _queues_for_room(self, user: Any) -> bool:
        """Return whether `user` waits for room, or anybody does, and not just for more than one user may have."""
        return user in self._queue or self._queue.anybody_below(self._most_of_one // 2, self._of_user)

    def join(self, receiver: Receiver, changed: Callable[[], None], user: Any, *, waits: bool) -> None:
        """Count an upload that was accepted; `waits`: without credit, for want of room."""
        stored = receiver.offset(receiver.stored)
        self._accounts[receiver] = account = _Account(user, changed, self._short.includes(receiver, stored), stored)
        if waits and account.short:
            self._short.waiting.add(user, receiver)
        elif waits:
            self._queue.add(user, receiver)
        self._count(receiver)
        self._hand_out()

    def leave(self, receiver: Receiver) -> None:
        """Count an upload no more."""
        account = self._accounts.get(receiver)
        if account is not None:
            self._charge(account, 0)
            self._wait_no_more(receiver)
            del self._accounts[receiver]
            self._hand_out()

    def waits(self, receiver: Receiver) -> bool:
        """Return whether it is for want of room that an upload gets no more credit."""
        account = self._accounts.get(receiver)
        if account is None:
            return False
        queues = (self._queue, self._short.waiting)
        return account.yields or any(queue.holds(account.user, receiver) for queue in queues)

    def moved(self, receiver: Receiver) -> None:
        """Note that chunks of an upload were stored; what that freed is handed out."""
        account = self._accounts.get(receiver)
        if account is None:
            return
        self._note_stored(receiver, account)
        share = self._share(len(self._accounts))
        receiver.resize(share)
        self._count(receiver)
        if receiver.stored == receiver.chunks:
            self._release(receiver)  # it needs no more
        elif self._queue:
            self._yield_turn(receiver)
        elif receiver.held:
            self._take_up_again(receiver, share)
        self._hand_out()

    def _note_stored(self, receiver: Receiver, account: _Account) -> None:
        stored = receiver.offset(receiver.stored)
        if account.of_new:
            self._short.note_stored(max(0, stored - account.stored_bytes))
        account.stored_bytes = stored

    def look(self, now: float) -> None:
        """See how fast each upload is; to be called every `LOOK_SECONDS`. `now`: monotonic seconds."""
        self._short.look(sum(_buffered(one) for one, account in self._accounts.items() if account.of_new))
        buffered = 0
        for receiver, account in self._accounts.items():
            self._measure(receiver, account, now)
            self._count(receiver)
            buffered += _buffered(receiver)
        self._over = buffered > self.budget
        self._hand_out()

    def crowds(self, receiver: Receiver) -> bool:
        """Return whether Redis has all that it should of uploads, and more of this one than an equal share."""
        return self._over and _buffered(receiver) > self._share(len(self._accounts))

    def _measure(self, receiver: Receiver, account: _Account, now: float) -> None:
        if account.since is not None and receiver.received < _end(receiver):  # else it waits for us
            came = max(0, receiver.received - account.first) * receiver.chunk_size
            speed = came / max(LOOK_SECONDS / 2, now - account.since)
            account.speed = speed if account.speed is None else max(speed, account.speed / 2)
        account.since, account.first = now, receiver.received

    def _take_up_again(self, receiver: Receiver, share: int) -> None:
        """Give credit again now that nobody waits; where there is no room yet, wait, since nothing else moves it then."""
        account = self._accounts[receiver]
        if self._has_room(account.user, share - account.outstanding):
            self._release(receiver)
        elif receiver.stored >= receiver.limit:
            self._queue.add(account.user, receiver)

    def _yield_turn(self, receiver: Receiver) -> None:
        """Give no more credit to one who has had some while others wait; back in the queue once it is used up."""
        account = self._accounts[receiver]
        receiver.hold()
        account.yields = True
        if receiver.stored >= receiver.limit:
            self._queue.add(account.user, receiver)

    def _release(self, receiver: Receiver) -> None:
        self._accounts[receiver].yields = False
        receiver.release()

    def _wait_no_more(self, receiver: Receiver) -> None:
        user = self._accounts[receiver].user
        self._queue.remove(user, receiver)
        self._short.waiting.remove(user, receiver)

    def _hand_out(self) -> None:
        self._let_begin()
        while (turn := self._queue.first(self._of_user)) is not None:
            user, receiver = turn
            if not self._has_room(user, self._wanted(receiver)):
                return
            self._give(receiver)

    def _let_begin(self) -> None:
        """Give credit to short uploads whose turn it is to begin; who finds no room in the budget then waits for that."""
        while (turn := self._short.waiting.first(self._of_user)) is not None:
            user, receiver = turn
            wanted = self._wanted(receiver)
            if not self._short.may_begin(wanted):
                return
            if self._queues_for_room(user) or not self._has_room(user, wanted):
                self._short.waiting.remove(user, receiver)
                self._queue.add(user, receiver)
            else:
                self._give(receiver)

    def _wanted(self, receiver: Receiver) -> int:
        share = max(receiver.chunk_size, self._share(len(self._accounts)))
        return _useful(share, receiver, receiver.offset(receiver.stored))

    def _give(self, receiver: Receiver) -> None:
        account = self._accounts[receiver]
        self._wait_no_more(receiver)
        self._queue.served(account.user)
        self._short.waiting.served(account.user)
        grant = self._grant(receiver, account)
        receiver.resize(grant)
        self._release(receiver)
        account.speed = account.since = None  # for want of credit it was as slow as we were
        given = _useful(max(receiver.chunk_size, grant), receiver, receiver.offset(receiver.stored))
        self._charge(account, account.outstanding + given)
        account.changed()

    def _grant(self, receiver: Receiver, account: _Account) -> int:
        share = self._share(len(self._accounts))
        if receiver.size is None:
            return share
        left = receiver.size - receiver.offset(receiver.stored)
        room = min(self.budget - self._total, self._most_of_one - self._of_user[account.user])
        return left if share < left <= min(self._segment, self._window, room) else share

    def _count(self, receiver: Receiver) -> None:
        account = self._accounts[receiver]
        counts = _unstored(receiver, _end(receiver))
        if account.speed is not None:
            likely = receiver.chunk_size + int(account.speed * AHEAD_SECONDS)
            counts = min(counts, max(likely, _buffered(receiver)))
        self._charge(account, counts)

    def _charge(self, account: _Account, outstanding: int) -> None:
        self._total += outstanding - account.outstanding
        self._of_user[account.user] += outstanding - account.outstanding
        account.outstanding = outstanding
        of_new = outstanding if account.short and account.speed is None else 0
        self._short.charge(of_new - account.of_new)
        account.of_new = of_new
        if not self._of_user[account.user]:
            del self._of_user[account.user]


def _useful(credit: int, receiver: Receiver, stored: int) -> int:
    """Return how much of so many bytes an upload can use that is stored up to byte `stored`."""
    return credit if receiver.size is None else min(credit, receiver.size - stored)


def _end(receiver: Receiver) -> int:
    """Return up to which chunk an upload may send."""
    return receiver.limit if receiver.chunks is None else min(receiver.limit, receiver.chunks)


def _buffered(receiver: Receiver) -> int:
    return _unstored(receiver, receiver.received)


def _unstored(receiver: Receiver, end: int) -> int:
    """Return the bytes from what is stored up to chunk `end`."""
    return max(0, receiver.offset(end) - receiver.offset(receiver.stored))
