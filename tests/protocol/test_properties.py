"""A transfer under everything that can happen to it: Hypothesis plays the network, the workers and the crashes.

The same machine must fail with each mistake that is seeded on purpose: a check that cannot fail is a defect.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from delivery.errors import UsageError
from delivery.protocol.connection import Connection, Side
from delivery.protocol.loss_probe import LossProbe, Suspect
from delivery.protocol.receiver import Receiver
from delivery.protocol.sender import Sender
from delivery.protocol.storing import Storing

from .link import Link, World
from .store import BLOCK, AppendingStore, Broken, Source, Store

pytestmark = pytest.mark.no_cover  # what it reaches is up to chance

SETTINGS = settings(
    max_examples=200,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
BRIEF = settings(SETTINGS, max_examples=100)
# A mutant only has to be found, not to be explained.
HUNTING = settings(SETTINGS, max_examples=1000, phases=[Phase.generate])

chunk_sizes = st.sampled_from([BLOCK, 2 * BLOCK, 4 * BLOCK])
sizes = st.sampled_from(
    [n * BLOCK + odd for n, odd in [(10, 5), (12, 0), (7, 0), (4, 1), (3, -1), (2, 0), (1, 0), (0, 1), (0, 0)]]
)
picks = st.integers(0, 7)
# Before something goes wrong, some rounds go well: how many, turns of sending in each, whether workers keep up.
progresses = st.tuples(st.integers(0, 3), st.integers(1, 12), st.booleans())


class Transfer(RuleBasedStateMachine):
    """One transfer, one direction; connections come and go."""

    store: type[Store] = Store
    fenced = True

    @initialize(
        size=sizes,
        known=st.booleans(),
        digest=st.booleans(),
        side=st.sampled_from(Side),
        window=st.sampled_from([4 * BLOCK, 8 * BLOCK, 2 * BLOCK, BLOCK]),
        segment=st.sampled_from([BLOCK, 2 * BLOCK, 8 * BLOCK]),
        early=st.sampled_from([0, 4 * BLOCK]),
        chunk=chunk_sizes,
    )
    def begin(self, size, known, digest, side, window, segment, early, chunk):
        source = Source.of(size, size_known=known or side is Side.SERVER, digest_known=digest or side is Side.SERVER)
        store = self.store()
        store.fenced = self.fenced
        self.world = World(source, side, store, window=window, segment=segment, early_data=early)
        self.world.connect(chunk, chunk)

    def pick(self, number: int) -> Link:
        """Mostly the present connection, sometimes an older one, whose messages arrive late."""
        links = self.world.links
        return links[-1] if number < 5 else links[-1 - number % len(links)]

    def chunks_under_way(self, link: Link) -> list[int]:
        """Return where chunks are under way on a connection, after sending some where there are none."""
        for _ in range(4):
            found = [index for index, message in enumerate(link.forth) if isinstance(message, bytes)]
            if len(found) > 1 or not self.world.send():
                return found
        return []

    # -- what goes well --------------------------------------------------------------------------------------------

    def go_well(self, progress: tuple[int, int, bool]) -> None:
        """Bring on what is under way, both ways."""
        rounds, turns, storing = progress
        for _ in range(rounds):
            self.world.round(turns, storing=storing)

    @rule(progress=progresses)
    def nothing_happens(self, progress):
        self.go_well(progress)

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0, 6.0]))
    def time_passes(self, seconds):
        self.world.now += seconds
        if (link := self.world.link) is not None:
            self.world.look_at_the_clock(link)

    @rule(turns=st.integers(1, 12))
    def send(self, turns):
        for _ in range(turns):
            self.world.send()

    @rule(number=picks, count=st.integers(1, 12))
    def deliver_forth(self, number, count):
        link = self.pick(number)
        for _ in range(count):
            self.world.deliver_forth(link)

    @rule(number=picks, count=st.integers(1, 6))
    def deliver_back(self, number, count):
        link = self.pick(number)
        for _ in range(count):
            self.world.deliver_back(link)

    @rule(number=picks)
    def answer(self, number):
        end = self.pick(number).receiving
        if end.alive and end.questions:
            end.answer()

    @precondition(lambda self: self.world.tasks)
    @rule(number=picks)
    def store_a_run(self, number):
        self.world.run_task(self.world.tasks[number % len(self.world.tasks)])

    @rule(seconds=st.sampled_from([0.1, 0.5, 2.0]))
    def wait(self, seconds):
        self.world.now += seconds
        for link in self.world.links:
            if link.receiving.alive:
                link.receiving.work()

    @precondition(lambda self: self.world.link and not self.world.sender and not self.world.completed)
    @rule(chunk=chunk_sizes)
    def offer_again(self, chunk):
        if self.world.link.sending.can_offer():
            self.world.offer(chunk)

    # -- what does not ---------------------------------------------------------------------------------------------

    @rule(progress=progresses, offered=chunk_sizes, announced=chunk_sizes)
    def reconnect(self, progress, offered, announced):
        self.go_well(progress)
        self.world.connect(offered, announced)

    @rule(progress=progresses)
    def crash_of_the_receiver(self, progress):
        self.go_well(progress)
        self.world.crash_receiver()

    @rule(progress=progresses, number=picks)
    def lose_a_run(self, progress, number):
        self.go_well(progress)
        if tasks := self.world.tasks:
            self.world.lose_task(tasks[number % len(tasks)])

    @rule(progress=progresses, number=picks, at=picks)
    def damage_a_chunk(self, progress, number, at):
        self.go_well(progress)
        link = self.pick(number)
        if chunks := self.chunks_under_way(link):
            index = chunks[at % len(chunks)]
            link.forth[index] = link.forth[index][:-1] + bytes([link.forth[index][-1] ^ 1])

    @rule(progress=progresses, number=picks, at=picks)
    def lose_a_chunk(self, progress, number, at):
        self.go_well(progress)
        link = self.pick(number)
        if chunks := self.chunks_under_way(link):
            del link.forth[chunks[at % len(chunks)]]
            link.tampered = True

    @rule(number=picks)
    def hold_or_release(self, number):
        for intake in self.pick(number).receiving.intakes.values():
            if intake.accepted:
                (intake.receiver.release if intake.receiver.held else intake.receiver.hold)()

    # -- what always holds -----------------------------------------------------------------------------------------

    @invariant()
    def promises_hold(self):
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self):
        if not hasattr(self, "world"):
            return
        for link in self.world.links:
            for intake in link.receiving.intakes.values():
                intake.receiver.release()
        self.world.heal(2 * BLOCK)


def test_every_transfer_keeps_its_promises_and_comes_to_its_end():
    run_state_machine_as_test(Transfer, settings=SETTINGS)


def reports_behind_its_pong(original, connection, now, *, at_once=False):
    """What a receiver of before the rule does: its reports come by time alone."""
    original(connection, now)


def test_a_receiver_that_reports_behind_its_pong_is_not_taken_for_a_swallower():
    with replaced(Connection, "queue_acks", reports_behind_its_pong):
        run_state_machine_as_test(Transfer, settings=BRIEF)


# -- seeded mistakes -------------------------------------------------------------------------------------------------


class Unfenced(Transfer):
    fenced = False


class Appending(Transfer):
    store = AppendingStore


class UnfencedAppending(Transfer):
    fenced = False
    store = AppendingStore


@pytest.mark.parametrize("machine", [Unfenced, Appending])
def test_fence_and_idempotence_mask_each_other(machine):
    run_state_machine_as_test(machine, settings=BRIEF)


def test_neither_fence_nor_idempotence_is_found():
    with pytest.raises((Broken, UsageError)):  # whichever the core or the world notices first
        run_state_machine_as_test(UnfencedAppending, settings=HUNTING)


@contextlib.contextmanager
def replaced(owner: type, name: str, mutant: Callable) -> Iterator[None]:
    """Wrap a method of the core: `mutant` gets the original first."""
    original = getattr(owner, name)
    with mock.patch.object(owner, name, lambda *args, **kwargs: mutant(original, *args, **kwargs)):
        yield


def acks_early(original, receiver, now, **how):
    receiver.on_stored(receiver.received)
    return original(receiver, now, **how)


def resumes_one_too_far(original, receiver, position, *args):
    return original(receiver, position + (position > 0), *args)


def resumes_one_too_early(original, sender, message, now):
    original(sender, message, now)
    sender.next_seq = max(0, sender.next_seq - 1)


def gives_endless_credit(original, receiver, now, **how):
    ack = original(receiver, now, **how)
    if ack is not None:
        receiver.limit = 1_000
        ack = type(ack)(handle=ack.handle, seq=ack.seq, received=ack.received, limit=receiver.limit)
    return ack


def ignores_credit(original, sender):
    limit, sender.limit = sender.limit, 1_000
    due = original(sender)
    sender.limit = limit
    return due


def accepts_gaps(original, receiver, seq, length):
    received, receiver.received = receiver.received, seq
    original(receiver, seq, length)
    receiver.received = received


def forgets_finish_after_a_nack(original, sender, message):
    finished = sender.finished
    original(sender, message)
    sender.finished = False
    if finished:  # goes on sending, but believes that it has said finish
        sender.finish_due = lambda: False


def takes_what_follows_a_nack(original, receiver, seq, code):
    answer = original(receiver, seq, code)
    receiver._rewinding = False
    return answer


def keeps_finish_after_a_nack(original, receiver, seq, code):
    finish = receiver.finish
    answer = original(receiver, seq, code)
    receiver.finish = finish
    return answer


def never_looks_at_checksums(original, chunk):
    return True


def forgets_the_short_chunk(original, receiver, seq, length):
    """Take a first short chunk for one of many."""


def never_looks_for_losses(original, probe, senders, now):
    return False


def suspects_whatever_moved(original, suspect):
    return True


MUTANTS = [
    (LossProbe, "ping_due", never_looks_for_losses),
    (Suspect, "unmoved", suspects_whatever_moved),
    (Storing, "next_ack", acks_early),
    (Receiver, "_begin", resumes_one_too_far),
    (Storing, "next_ack", gives_endless_credit),
    (Sender, "chunk_due", ignores_credit),
    (Receiver, "_check_place", accepts_gaps),
    (Sender, "on_nack", forgets_finish_after_a_nack),
    (Receiver, "lost", takes_what_follows_a_nack),
    (Receiver, "lost", keeps_finish_after_a_nack),
    (Receiver, "_check_growth", forgets_the_short_chunk),
]


@pytest.mark.parametrize(("owner", "name", "mutant"), MUTANTS, ids=[mutant.__name__ for *_, mutant in MUTANTS])
def test_a_seeded_mistake_is_found(owner, name, mutant):
    # A core that is told nonsense may also notice itself, as misuse by its own driver.
    with replaced(owner, name, mutant), pytest.raises((Broken, UsageError)):
        run_state_machine_as_test(Transfer, settings=HUNTING)
