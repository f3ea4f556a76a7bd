"""The credit ledger: all uploads of a process together never have more outstanding than the budget, and all end."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delivery.protocol.messages import UploadOffer
from delivery.protocol.receiver import Receiver, Terms
from delivery.server.flow_control import CreditLedger

CHUNK = 4096
WINDOW = 16 * CHUNK
TERMS = Terms(window=WINDOW, segment_size=4 * CHUNK, max_size=2**40)
TRANSFER = "0f8fad5b-d9cb-469f-a165-70867728950e"


class World:
    """A ledger and uploads whose senders use all credit at once, in memory."""

    def __init__(self, budget: int, window: int = WINDOW, *, segment: int = 0, workers: int = 1) -> None:
        self.ledger = CreditLedger(budget, window, segment, lambda: workers)
        self.told: list[Receiver] = []
        self.now = 0.0
        self._handles = 0

    def open(self, chunks: int | None, *, user: int = 1, chunk_size: int = CHUNK, stored: int = 0) -> Receiver:
        """Accept one more upload of so many whole chunks, as `uploading` does."""
        size = None if chunks is None else chunks * chunk_size
        return self.open_bytes(size, user=user, chunk_size=chunk_size, stored=stored)

    def open_bytes(self, size: int | None, *, user: int = 1, chunk_size: int = CHUNK, stored: int = 0) -> Receiver:
        """Accept one more upload of `size` bytes."""
        self._handles += 1
        offer = UploadOffer(transfer=TRANSFER, handle=self._handles, name="", size=size, chunk_size=chunk_size)
        receiver = Receiver(offer)
        waits = not self.ledger.fits(receiver, stored, user)
        terms = replace(TERMS, window=self.ledger.window())
        receiver.accept(chunk_size=2**22, stored=stored, terms=terms, now=self.now, hold=waits)
        self.ledger.join(receiver, lambda: self.told.append(receiver), user, waits=waits)
        return receiver

    def send(self, receiver: Receiver) -> int:
        """Take in whatever the credit allows; return how many chunks."""
        receiver.next_ack(self.now)
        end = receiver.limit if receiver.chunks is None else min(receiver.limit, receiver.chunks)
        count = max(0, end - receiver.received)
        receiver.received += count
        return count

    def store(self, receiver: Receiver, chunks: int) -> None:
        """Store some of what was taken in."""
        self.now += 0.1
        receiver.on_stored(min(receiver.received, receiver.stored + chunks))
        self.ledger.moved(receiver)

    def buffered(self, receivers: list[Receiver]) -> int:
        return sum((one.received - one.stored) * one.chunk_size for one in receivers)


def test_while_everybody_fits_everybody_has_a_whole_window():
    world = World(budget=8 * WINDOW)
    uploads = [world.open(100) for _ in range(6)]
    assert [one.limit for one in uploads] == [16] * 6
    assert not any(world.ledger.waits(one) for one in uploads)


def test_one_more_than_fits_waits_with_no_credit():
    world = World(budget=4 * WINDOW)
    for user in range(4):
        world.open(100, user=user)
    late = world.open(100, user=4)
    assert late.limit == 0
    assert world.ledger.waits(late)


def test_what_is_stored_goes_to_who_waits():
    world = World(budget=2 * WINDOW)
    first, second = world.open(100, user=1), world.open(100, user=2)
    late = world.open(100, user=3)
    world.send(first)
    world.store(first, 16)
    assert world.told == [late]
    assert world.send(late) > 0
    assert second.limit == 16  # what was given stays given


def test_one_user_leaves_a_quarter_to_the_others():
    world = World(budget=8 * WINDOW)
    greedy = [world.open(100) for _ in range(50)]
    assert sum(one.limit for one in greedy) <= 6 * 16
    for user in (2, 3):
        assert world.open(100, user=user).limit > 0


def test_the_others_are_next_though_one_user_has_waited_longer():
    world = World(budget=8 * WINDOW)
    greedy = [world.open(100) for _ in range(50)]
    others = [world.open(100, user=user) for user in range(2, 30)]
    waiting = [one for one in others if world.ledger.waits(one)]
    assert waiting
    for done in [one for one in greedy if one.limit][:3]:
        world.ledger.leave(done)
    assert world.told[0] is waiting[0]


def test_a_small_upload_takes_no_more_than_its_size():
    world = World(budget=2 * WINDOW)
    for _ in range(20):
        assert not world.ledger.waits(world.open(1))


def test_who_leaves_gives_back_what_it_had():
    world = World(budget=WINDOW)
    first, late = world.open(100), world.open(100)
    assert world.ledger.waits(late)
    world.ledger.leave(first)
    assert not world.ledger.waits(late)
    assert world.send(late) > 0
    world.ledger.leave(late)
    assert world.ledger.window() == 3 * WINDOW // 4


def test_who_waits_and_leaves_is_forgotten():
    world = World(budget=WINDOW)
    first = world.open(100)
    gone, late = world.open(100), world.open(100)
    world.ledger.leave(gone)
    world.ledger.leave(first)
    assert world.told == [late]


@pytest.mark.parametrize("segment", [0, WINDOW])
def test_no_upload_of_the_same_user_overtakes_who_waits(segment):
    world = World(budget=WINDOW, segment=segment)
    first, second = world.open(100), world.open(100)
    third = world.open(1)  # so small that it would fit sooner
    assert third.limit == 0
    world.send(first)
    world.store(first, 16)
    assert world.told[0] is second


def test_a_chunk_larger_than_the_budget_moves_alone():
    world = World(budget=CHUNK)
    large = world.open(3, chunk_size=4 * CHUNK)
    for _ in range(3):
        assert world.send(large) == 1
        world.store(large, 1)
    assert large.stored == 3


def test_a_budget_that_shrinks_takes_nothing_back():
    world = World(budget=4 * WINDOW)
    uploads = [world.open(100, user=user) for user in range(4)]
    world.ledger.budget = WINDOW
    assert [one.limit for one in uploads] == [16] * 4
    for one in uploads:
        world.send(one)
        world.store(one, 16)
    assert world.ledger.window() <= WINDOW // 4


def test_who_has_to_yield_is_not_taken_for_one_who_waits_for_a_worker():
    world = World(budget=2 * WINDOW)
    first, _ = world.open(100, user=1), world.open(100, user=2)
    late = world.open(100, user=3)
    world.send(first)
    world.store(first, 1)  # some credit is left
    assert first.held
    assert world.ledger.waits(first)
    world.ledger.leave(late)
    world.store(first, 1)
    assert not first.held
    assert not world.ledger.waits(first)


def test_slow_uploads_count_for_what_they_send_and_not_for_what_they_may():
    world = World(budget=4 * WINDOW)
    slow = [world.open(100, user=user) for user in range(4)]
    late = [world.open(100, user=10 + user) for user in range(3)]
    assert all(world.ledger.waits(one) for one in late)
    world.ledger.look(0.0)
    assert not world.told  # nobody knows yet how fast they are
    for one in slow:
        one.received += 1
    world.ledger.look(5.0)
    assert world.told == late
    assert world.ledger._total <= world.ledger.budget


def test_who_waits_for_us_is_not_taken_for_slow():
    world = World(budget=2 * WINDOW)
    first, second = world.open(100, user=1), world.open(100, user=2)
    late = world.open(100, user=3)
    world.send(first)
    world.send(second)
    for now in range(10):  # Storage takes its time
        world.ledger.look(float(now))
    assert world.ledger.waits(late)


def test_who_has_more_than_an_equal_share_waits_while_all_hurry():
    world = World(budget=4 * WINDOW)
    slow = [world.open(100, user=user) for user in range(4)]
    late = [world.open(100, user=10 + user) for user in range(4)]
    world.ledger.look(0.0)
    for one in slow:
        one.received += 1
    world.ledger.look(5.0)
    everybody = slow + late
    assert not any(world.ledger.crowds(one) for one in everybody)
    for one in everybody:
        world.send(one)
    world.ledger.look(5.5)
    assert world.buffered(everybody) > world.ledger.budget
    assert all(world.ledger.crowds(one) for one in slow)
    for one in slow:
        world.store(one, 16)
    world.ledger.look(6.0)
    assert not any(world.ledger.crowds(one) for one in everybody)


def test_what_is_left_is_given_in_one_go_where_there_is_room():
    world = World(budget=4 * WINDOW, window=2 * WINDOW, segment=WINDOW)
    first, second = world.open(32, user=1), world.open(32, user=2)
    small = [world.open(12, user=10 + user) for user in range(8)]  # an equal share is 6 chunks
    assert all(world.ledger.waits(one) for one in small)
    world.send(first)
    world.store(first, 32)
    world.ledger.leave(first)
    given = [world.send(one) for one in small]
    assert given[:2] == [12, 12]
    assert world.ledger._total <= world.ledger.budget
    assert second.limit == 32


def world_of_short_uploads(count: int, *, workers: int = 1, chunks: int = 16) -> tuple[World, list[Receiver]]:
    """Return a world with room for everybody, and short uploads of as many users that came together."""
    world = World(budget=200 * WINDOW, segment=WINDOW, workers=workers)
    return world, [world.open(chunks, user=user) for user in range(count)]


def begun(uploads: list[Receiver]) -> list[bool]:
    return [bool(one.limit) for one in uploads]


@pytest.mark.parametrize(("workers", "at_once"), [(0, 10), (1, 10), (4, 16)])
def test_of_short_uploads_as_many_begin_as_keep_the_workers_busy(workers, at_once):
    world, uploads = world_of_short_uploads(40, workers=workers)
    assert begun(uploads) == [True] * at_once + [False] * (40 - at_once)
    assert all(world.ledger.waits(one) for one in uploads[at_once:])
    for number, one in enumerate(uploads[:3]):
        world.send(one)
        world.store(one, 16)
        assert world.told == uploads[at_once : at_once + number + 1]
        world.ledger.leave(one)
        assert world.told == uploads[at_once : at_once + number + 1]


def test_what_counts_of_short_uploads_is_their_bytes():
    _, uploads = world_of_short_uploads(40, chunks=8)
    assert begun(uploads) == [True] * 20 + [False] * 20
    world = World(budget=40 * CHUNK, segment=WINDOW)
    tiny = [world.open_bytes(CHUNK // 10, user=user) for user in range(200)]
    assert world.ledger._total == 200 * (CHUNK // 10)
    for one in tiny:
        assert world.send(one) == 1
    world.ledger.look(0.0)
    assert not any(world.ledger.crowds(one) for one in tiny)


@pytest.mark.parametrize("user", [1, 99])
def test_uploads_that_wait_to_begin_slow_down_no_long_one(user):
    world, _ = world_of_short_uploads(40)
    long = world.open(100, user=user)
    assert long.limit == 16
    world.send(long)
    world.store(long, 8)
    assert not long.held
    assert not world.ledger.waits(long)
    assert world.send(long) == 8


@pytest.mark.parametrize("upload", [(100, 0), (17, 0), (None, 0)])
def test_an_upload_that_is_not_short_begins_at_once(upload):
    world, _ = world_of_short_uploads(40)
    chunks, stored = upload
    assert world.open(chunks, user=99, stored=stored).limit > 0


def test_what_is_left_of_a_long_upload_may_be_short():
    world, _ = world_of_short_uploads(40)
    assert world.ledger.waits(world.open(100, user=99, stored=84 * CHUNK))
    assert not world.ledger.waits(world.open(100, user=99, stored=83 * CHUNK))


def test_who_waits_to_begin_waits_for_room_like_everybody_where_there_is_none():
    world = World(budget=12 * WINDOW, segment=WINDOW)
    long = [world.open(100, user=user) for user in range(4)]
    short = [world.open(16, user=10 + user) for user in range(12)]
    assert begun(short) == [True] * 8 + [False] * 4
    for one in long:
        world.send(one)
        world.store(one, 4)
    assert all(one.held for one in long)  # they yield
    assert all(one.limit for one in long + short[:8])
    for one in short[:4]:
        world.send(one)
        world.store(one, 16)
        world.ledger.leave(one)
    assert set(short[8:]) <= set(world.told)
    assert world.ledger._total <= world.ledger.budget


def test_nobody_waits_long_for_short_uploads_whose_senders_are_slow():
    world, short = world_of_short_uploads(90)
    world.ledger.look(0.0)
    assert sum(world.ledger.waits(one) for one in short) == 80  # the first look says nothing yet
    world.ledger.look(0.5)
    assert not any(world.ledger.waits(one) for one in short)
    for one in short:
        world.send(one)
    assert not world.ledger.waits(world.open(16, user=91))  # still so


def test_short_uploads_take_turns_again_once_their_senders_hurry():
    world, short = world_of_short_uploads(60)
    world.ledger.look(0.0)
    world.ledger.look(0.5)
    for one in short:
        world.send(one)
    world.ledger.look(1.0)
    assert world.ledger.waits(world.open(16, user=91))


def test_short_uploads_take_turns_again_once_all_have_ended():
    world, short = world_of_short_uploads(60)
    world.ledger.look(0.0)
    world.ledger.look(0.5)
    for one in short:
        world.ledger.leave(one)
    world.ledger.look(1.0)
    assert begun([world.open(16, user=user) for user in range(12)]) == [True] * 10 + [False] * 2


def test_slow_senders_are_not_known_by_what_long_ones_send():
    world, short = world_of_short_uploads(40)
    long = [world.open(1000, user=99 + number) for number in range(4)]
    for now in (0.0, 0.5):
        for one in long:
            world.send(one)
            world.store(one, 16)
            world.send(one)
        world.ledger.look(now)
    assert not any(world.ledger.waits(one) for one in short)


@pytest.mark.parametrize(("came", "slow"), [(39, True), (40, False)])
def test_slow_senders_are_known_by_what_came_and_by_what_was_stored_lately(came, slow):
    world, short = world_of_short_uploads(90)
    world.send(short[0])
    world.store(short[0], 16)
    world.ledger.look(0.0)  # that was before
    for one in short[1:4]:
        world.send(one)
    for _ in range(8):
        world.store(short[1], 1)
    short[3].received -= 48 - came
    world.ledger.look(0.5)
    assert world.ledger.waits(short[80]) is not slow


def test_no_short_upload_overtakes_who_waits_to_begin():
    world, _ = world_of_short_uploads(9)
    world.open(12, user=20)
    assert world.ledger.waits(world.open(16, user=21))
    assert world.ledger.waits(world.open(4, user=22))


def test_who_begins_later_counts_for_no_more_than_its_size():
    world, short = world_of_short_uploads(24, chunks=8)
    for one in short[:2]:
        world.ledger.leave(one)
    assert world.told == short[20:22]


@pytest.mark.parametrize("segment", [0, CHUNK])
def test_users_take_turns(segment):
    world = World(budget=CHUNK, segment=segment)
    first = world.open(1)
    waiting = [world.open(1, user=user) for user in (1, 1, 2, 2)]
    for one in (first, *(waiting[number] for number in (0, 2, 1, 3))):
        assert world.send(one) == 1
        world.store(one, 1)
        world.ledger.leave(one)


def test_short_uploads_whose_speed_is_known_count_no_more_among_the_new():
    world, short = world_of_short_uploads(24)
    world.ledger.look(0.0)
    for one in short[:10]:
        world.send(one)
        one.received -= 8  # half of it came, which is enough for not being slow
    world.ledger.look(0.5)
    assert world.told == short[10:20]


@pytest.mark.parametrize("chunks", [8, 16])
def test_short_uploads_that_wait_for_storage_keep_their_turn(chunks):
    world, short = world_of_short_uploads(24, chunks=chunks)
    for one in short:
        world.send(one)
    for step in range(8):
        world.ledger.look(step / 2)
    assert world.told == []


def test_short_uploads_that_move_go_on_a_few_at_a_time():
    world, short = world_of_short_uploads(40)
    for step in range(3):
        for one in short:
            world.send(one)
        for one in short[6 * step : 6 * step + 6]:
            world.store(one, 16)
            world.ledger.leave(one)
        for one in short:
            world.send(one)
        world.ledger.look(step / 2)
    assert world.told == short[10 : 10 + 3 * 6]


def test_what_is_stored_to_its_end_is_neither_held_nor_waits():
    world = World(budget=2 * WINDOW)
    first, _ = world.open(16, user=1), world.open(100, user=2)
    late = world.open(100, user=3)
    world.send(first)
    world.store(first, 8)
    assert first.held
    world.store(first, 8)
    assert not first.held
    assert not world.ledger.waits(first)
    assert world.told == [late]
    world.ledger.budget = 1
    world.ledger.leave(late)
    world.ledger.moved(first)
    assert not world.ledger.waits(first)


def run(world: World, uploads: list[Receiver], chances: random.Random, *, slack: int) -> None:
    """Let everybody send and store in a random order until all is stored; check the budget at each step."""
    live = list(uploads)
    for _ in range(200 * len(uploads) + 1000):
        if not live:
            return
        one = chances.choice(live)
        world.send(one)
        assert world.buffered(live) <= world.ledger.budget + slack
        world.store(one, chances.randint(1, 20))
        if one.stored == one.chunks:
            world.ledger.leave(one)
            live.remove(one)
    pytest.fail(f"{len(live)} uploads never ended")


@pytest.mark.parametrize("segment", [0, CHUNK, 8 * CHUNK])
@pytest.mark.parametrize("count", [1, 5, 100, 1000])
def test_any_number_of_uploads_ends_within_the_budget(count, segment):
    world = World(budget=64 * CHUNK, segment=segment)
    uploads = [world.open(8, user=number % 7) for number in range(count)]
    run(world, uploads, random.Random(count), slack=0)
    assert world.ledger.window() == WINDOW
    assert world.ledger._total == world.ledger._short._outstanding == 0
    assert not world.ledger._of_user


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    budget=st.integers(1, 200),
    sizes=st.lists(
        st.tuples(st.integers(0, 40), st.sampled_from([CHUNK, 2 * CHUNK, 8 * CHUNK]), st.integers(1, 3)),
        min_size=1,
        max_size=40,
    ),
    segment=st.integers(0, 20),
    seed=st.integers(0, 2**32),
)
def test_whatever_their_sizes_all_of_them_end(budget, sizes, segment, seed):
    world = World(budget=budget * CHUNK, segment=segment * CHUNK)
    uploads = [world.open(chunks, user=user, chunk_size=chunk_size) for chunks, chunk_size, user in sizes]
    run(world, uploads, random.Random(seed), slack=8 * CHUNK)
