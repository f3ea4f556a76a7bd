"""Credit of all uploads of a web process: together they never have more in Redis than the budget.

While everybody's window fits, everybody has it. Beyond, each gets an equal share; and where not even one chunk each
fits, credit goes round: to the user who has least, and of theirs to who waits longest; who has used theirs up waits
again. What little is left of an upload it gets in one go, if there is room: one task then stores it. One user's uploads
get three quarters of the budget at most: credit that is taken and never used must not stop the others.

What an upload may send counts until its speed is known; from then on what it will have sent before that is stored, most
likely. Slow uploads have little in Redis, however much they may send. Should they all begin to hurry, who has more there
than an equal share waits.

Of many short uploads only so many go at once as keep the workers busy: all together they would all end late, and what
lies in Redis meanwhile costs more than it does where room is used again. Where little is stored although some wait, their
senders are slow, and nobody waits for them.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from delivery.protocol.receiver import Receiver

LOOK_SECONDS = 0.5
#: So much of what comes at an upload's speed may be in Redis: storing begins after 2 s, and takes its time.
AHEAD_SECONDS = 4.0
#: So many segments of short uploads go at once, for each live worker and at least: two are stored, others come meanwhile.
SEGMENTS_A_WORKER, LEAST_SEGMENTS = 4, 10


@dataclass(slots=True)
class _Account:
    """One upload: whose it is, what it counts for, in bytes, and how its session is told that its credit grew.

    `short`: one task stores all that is left of it. `speed` in bytes a second, None until it is known; measured from the
    time `since`, and chunk `first`, on. `stored`: chunks, when it last moved.
    """

    user: Any
    changed: Callable[[], None]
    short: bool
    stored: int
    outstanding: int = 0
    yields: bool = False  # gets no more while others wait
    speed: float | None = None
    since: float | None = None
    first: int = 0
    of_short: int = 0  # what it counts for among the short ones: nothing once its speed is known


class CreditLedger:
    """The budget of one web process, in bytes. Belongs to its event loop.

    `segment`: what one task stores at most. `workers` returns how many live.
    """

    def __init__(self, budget: int, window: int, segment: int = 0, workers: Callable[[], int] = lambda: 1) -> None:
        self.budget = budget
        self._window = window
        self._segment = segment
        self._workers = workers
        self._total = 0
        self._of_short = 0
        self._stored = 0  # bytes, since the last look
        self._waited = False  # somebody did at the last look
        self._slow = False  # little is stored, although some wait
        self._over = False  # more than the budget is in Redis
        self._of_user: Counter[Any] = Counter()
        self._accounts: dict[Receiver, _Account] = {}
        self._queues: OrderedDict[Any, OrderedDict[Receiver, None]] = OrderedDict()  # who waits, by user

    def window(self) -> int:
        """Return the window in bytes of one more upload."""
        return self._share(len(self._accounts) + 1)

    def _share(self, among: int) -> int:
        return min(self._window, self._most_of_one, self.budget // among)

    @property
    def _most_of_one(self) -> int:
        return 3 * self.budget // 4

    @property
    def _most_of_short(self) -> int:
        return self._segment * max(LEAST_SEGMENTS, SEGMENTS_A_WORKER * self._workers())

    def _has_room(self, user: Any, wanted: int, *, short: bool) -> bool:
        """Return whether `user` may have `wanted` bytes more. Alone, even a chunk above the budget has its turn."""
        if self._total + wanted > self.budget and self._total > 0:
            return False
        if short and not self._slow and self._of_short + wanted > self._most_of_short and self._of_short > 0:
            return False
        return self._of_user[user] + wanted <= self._most_of_one or self._of_user[user] == 0

    def fits(self, receiver: Receiver, stored: int, user: Any) -> bool:
        """Return whether an upload of `user` that goes on from byte `stored` gets credit at once, or has to wait for it."""
        wanted = _at_most(max(receiver.chunk_size, self.window()), receiver, stored)
        if user in self._queues or self._somebody_needs_room():
            return False
        return self._has_room(user, wanted, short=self._is_short(receiver, stored))

    def _is_short(self, receiver: Receiver, stored: int) -> bool:
        return receiver.size is not None and receiver.size - stored <= self._segment

    def _somebody_needs_room(self) -> bool:
        """Return whether anybody waits for room, and not just for more than one user may have."""
        return any(self._of_user[user] < self._most_of_one // 2 for user in self._queues)

    def join(self, receiver: Receiver, changed: Callable[[], None], user: Any, *, waits: bool) -> None:
        """Count an upload that was accepted; `waits`: without credit, for want of room."""
        short = self._is_short(receiver, receiver.stored * receiver.chunk_size)
        self._accounts[receiver] = _Account(user, changed, short, receiver.stored)
        if waits:
            self._wait(receiver)
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
        return account is not None and (account.yields or receiver in self._queues.get(account.user, ()))

    def moved(self, receiver: Receiver) -> None:
        """Note that chunks of an upload were stored; what that freed is handed out."""
        account = self._accounts.get(receiver)
        if account is None:
            return
        self._stored += max(0, receiver.stored - account.stored) * receiver.chunk_size
        account.stored = receiver.stored
        share = self._share(len(self._accounts))
        receiver.resize(share)
        self._count(receiver)
        if self._queues:
            self._yield_turn(receiver)
        elif receiver.held:
            self._take_up_again(receiver, share)
        self._hand_out()

    def look(self, now: float) -> None:
        """See how fast each upload is; to be called every `LOOK_SECONDS`. `now`: monotonic seconds."""
        buffered = 0
        for receiver, account in self._accounts.items():
            self._measure(receiver, account, now)
            self._count(receiver)
            buffered += _buffered(receiver)
        self._over = buffered > self.budget
        waited, self._waited = self._waited, bool(self._queues)
        self._slow = waited and self._waited and self._stored < self._most_of_short // 2
        self._stored = 0
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
        if self._has_room(account.user, share - account.outstanding, short=account.short):
            self._release(receiver)
        elif receiver.stored >= receiver.limit:
            self._wait(receiver)

    def _yield_turn(self, receiver: Receiver) -> None:
        """Give no more credit to one who has had some while others wait; back in the queue once it is used up."""
        receiver.hold()
        self._accounts[receiver].yields = True
        if receiver.stored >= receiver.limit and receiver.stored != receiver.chunks:
            self._wait(receiver)

    def _release(self, receiver: Receiver) -> None:
        self._accounts[receiver].yields = False
        receiver.release()

    def _wait(self, receiver: Receiver) -> None:
        self._queues.setdefault(self._accounts[receiver].user, OrderedDict()).setdefault(receiver)

    def _wait_no_more(self, receiver: Receiver) -> None:
        user = self._accounts[receiver].user
        if user in self._queues:
            self._queues[user].pop(receiver, None)
            if not self._queues[user]:
                del self._queues[user]

    def _hand_out(self) -> None:
        while (receiver := self._next()) is not None:
            account = self._accounts[receiver]
            self._wait_no_more(receiver)
            if account.user in self._queues:
                self._queues.move_to_end(account.user)  # the others first
            grant = self._grant(receiver, account)
            receiver.resize(grant)
            self._release(receiver)
            account.speed = account.since = None  # for want of credit it was as slow as we were
            self._charge(account, account.outstanding + max(receiver.chunk_size, grant))
            account.changed()

    def _grant(self, receiver: Receiver, account: _Account) -> int:
        share = self._share(len(self._accounts))
        if receiver.size is None:
            return share
        left = receiver.size - receiver.stored * receiver.chunk_size
        room = min(self.budget - self._total, self._most_of_one - self._of_user[account.user])
        return left if share < left <= min(self._segment, self._window, room) else share

    def _next(self) -> Receiver | None:
        """Return whose turn it is, None where nobody waits or there is no room yet: first who has least."""
        if not self._queues:
            return None
        user = min(self._queues, key=self._of_user.__getitem__)
        receiver = next(iter(self._queues[user]))
        share = max(receiver.chunk_size, self._share(len(self._accounts)))
        wanted = _at_most(share, receiver, receiver.stored * receiver.chunk_size)
        return receiver if self._has_room(user, wanted, short=self._accounts[receiver].short) else None

    def _count(self, receiver: Receiver) -> None:
        account = self._accounts[receiver]
        counts = max(0, _end(receiver) - receiver.stored) * receiver.chunk_size
        if account.speed is not None:
            likely = receiver.chunk_size + int(account.speed * AHEAD_SECONDS)
            counts = min(counts, max(likely, _buffered(receiver)))
        self._charge(account, counts)

    def _charge(self, account: _Account, outstanding: int) -> None:
        self._total += outstanding - account.outstanding
        self._of_user[account.user] += outstanding - account.outstanding
        account.outstanding = outstanding
        of_short = outstanding if account.short and account.speed is None else 0
        self._of_short += of_short - account.of_short
        account.of_short = of_short
        if not self._of_user[account.user]:
            del self._of_user[account.user]


def _at_most(credit: int, receiver: Receiver, stored: int) -> int:
    """Return what an upload that is stored up to byte `stored` can use of so many bytes."""
    return credit if receiver.size is None else min(credit, receiver.size - stored)


def _end(receiver: Receiver) -> int:
    """Return up to which chunk an upload may send."""
    return receiver.limit if receiver.chunks is None else min(receiver.limit, receiver.chunks)


def _buffered(receiver: Receiver) -> int:
    return max(0, receiver.received - receiver.stored) * receiver.chunk_size
