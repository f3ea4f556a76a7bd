"""What is due to be stored, and what the sender hears. Numbers are chunks of 4 KiB; window 8, segment 4."""

from __future__ import annotations

import pytest

from delivery.errors import UsageError
from delivery.protocol.receiver import Receiver
from delivery.protocol.storing import REPORT_AFTER_SECONDS, STORE_AFTER_SECONDS, ChunkRange, Terms

from .messages_of import CHUNK, abort, chunk, finish, offer

TERMS = Terms(window=8 * CHUNK, segment_size=4 * CHUNK, max_size=100 * CHUNK)


def opened(*, size: int | None = 20 * CHUNK, stored: int = 0, terms: Terms = TERMS, hold: bool = False) -> Receiver:
    receiver = Receiver(offer(size=size))
    receiver.accept(chunk_size=CHUNK, stored=stored * CHUNK, terms=terms, now=0.0, hold=hold)
    return receiver


def take(receiver: Receiver, count: int, now: float = 0.0) -> None:
    for _ in range(count):
        receiver.on_chunk(chunk(receiver.received), now)


# -- when storing is due


def test_a_full_segment_is_due():
    receiver = opened()
    take(receiver, 3)
    assert receiver.next_run(0.0) is None
    take(receiver, 1)
    assert receiver.next_run(0.0) == ChunkRange(0, 4)
    assert receiver.next_run(0.0) is None


def test_segments_are_handed_out_one_by_one():
    receiver = opened()
    take(receiver, 8)
    assert [receiver.next_run(0.0) for _ in range(3)] == [ChunkRange(0, 4), ChunkRange(4, 8), None]


def test_everything_is_due_where_credit_ends():
    receiver = opened(terms=Terms(window=3 * CHUNK, segment_size=8 * CHUNK, max_size=100 * CHUNK))
    take(receiver, 3)
    assert receiver.next_run(0.0) == ChunkRange(0, 3)


def test_everything_is_due_once_it_is_complete():
    receiver = opened(size=2 * CHUNK)
    take(receiver, 2)
    assert receiver.next_run(0.0) == ChunkRange(0, 2)


def test_everything_is_due_at_finish():
    receiver = opened(size=None)
    take(receiver, 2)
    assert receiver.next_run(0.0) is None
    receiver.on_finish(finish(2, 2 * CHUNK))
    assert receiver.next_run(0.0) == ChunkRange(0, 2)


def test_what_waits_for_two_seconds_is_due():
    receiver = opened()
    take(receiver, 1, now=10.0)
    take(receiver, 1, now=11.0)
    assert receiver.next_run(10.0 + STORE_AFTER_SECONDS - 0.01) is None
    assert receiver.next_run(10.0 + STORE_AFTER_SECONDS) == ChunkRange(0, 2)


def test_the_clock_runs_from_the_oldest_chunk_that_is_left():
    receiver = opened()
    take(receiver, 5, now=10.0)
    receiver.next_run(11.9)
    assert receiver.next_run(12.0) == ChunkRange(4, 5)


def test_nothing_is_due_before_the_accept_nor_after_the_end():
    receiver = Receiver(offer(size=100), early_data=CHUNK)
    receiver.on_chunk(chunk(0, 100), 0.0)
    assert receiver.next_run(100.0) is None
    assert receiver.rest(100.0) is None
    assert receiver.wake_at() is None
    assert receiver.next_ack(100.0) is None
    receiver = opened()
    take(receiver, 5)
    receiver.on_abort(abort())
    assert receiver.next_run(100.0) is None
    assert receiver.rest(100.0) is None


def test_nacks_of_what_is_stored_meanwhile_are_forgotten():
    receiver = opened()
    take(receiver, 4)
    receiver.lost(1, "lost")
    take(receiver, 3)
    receiver.on_stored(2)
    assert not receiver._nacks


def test_a_segment_smaller_than_a_chunk_is_one_chunk():
    receiver = opened(terms=Terms(window=1, segment_size=1, max_size=100 * CHUNK))
    assert receiver.limit == 1
    take(receiver, 1)
    assert receiver.next_run(0.0) == ChunkRange(0, 1)


def test_before_a_close_the_rest_is_handed_out_due_or_not():
    receiver = opened()
    take(receiver, 6)
    assert [receiver.rest(0.0) for _ in range(3)] == [ChunkRange(0, 4), ChunkRange(4, 6), None]


def test_what_was_taken_in_before_a_detachment_may_still_be_stored():
    receiver = opened()
    take(receiver, 2)
    receiver.on_abort(abort(code="paused", final=False))
    assert receiver.next_run(100.0) is None
    assert [receiver.rest(0.0) for _ in range(2)] == [ChunkRange(0, 2), None]


# -- acks and credit


def test_no_ack_without_news():
    receiver = opened()
    assert receiver.next_ack(100.0) is None
    assert receiver.wake_at() is None


def test_an_ack_follows_storing_and_raises_the_limit():
    receiver = opened()
    take(receiver, 4)
    receiver.on_stored(4)
    ack = receiver.next_ack(0.0)
    assert (ack.handle, ack.seq, ack.received, ack.limit) == (7, 4, 4, 12)
    assert receiver.next_ack(0.0) is None


def test_an_ack_never_covers_what_is_not_stored():
    receiver = opened()
    take(receiver, 4)
    ack = receiver.next_ack(REPORT_AFTER_SECONDS)
    assert (ack.seq, ack.received, ack.limit) == (0, 4, 8)


def test_what_was_taken_in_is_reported_now_and_then():
    receiver = opened()
    take(receiver, 1)
    assert receiver.next_ack(REPORT_AFTER_SECONDS - 0.01) is None
    assert receiver.wake_at() == REPORT_AFTER_SECONDS
    assert receiver.next_ack(REPORT_AFTER_SECONDS) is not None


def test_falling_positions_are_ignored():
    receiver = opened()
    take(receiver, 4)
    receiver.on_stored(3)
    receiver.on_stored(2)
    assert receiver.stored == 3


def test_more_than_was_taken_in_cannot_be_stored():
    with pytest.raises(UsageError, match="only 0 were taken in"):
        opened().on_stored(1)


def test_storing_ahead_of_a_run_that_was_not_handed_out_skips_it():
    receiver = opened()
    take(receiver, 3)
    receiver.on_stored(2)
    assert receiver.rest(0.0) == ChunkRange(2, 3)


def test_a_hold_gives_no_credit_until_it_is_released():
    receiver = opened()
    take(receiver, 4)
    receiver.hold()
    receiver.on_stored(4)
    assert receiver.next_ack(0.0).limit == 8
    receiver.release()
    assert receiver.next_ack(0.0).limit == 12


def test_accepting_with_a_hold_gives_no_credit_at_all():
    receiver = opened(stored=4, hold=True)
    assert receiver.limit == 4
    receiver.release()
    assert receiver.next_ack(0.0).limit == 12


def test_the_limit_never_falls():
    receiver = opened()
    receiver.limit = 50
    receiver.release()
    assert receiver.next_ack(0.0).limit == 50


def test_a_smaller_window_takes_no_credit_back():
    receiver = opened()
    receiver.resize(2 * CHUNK)
    take(receiver, 4)
    receiver.on_stored(4)
    assert receiver.next_ack(0.0).limit == 8
    take(receiver, 4)
    receiver.on_stored(8)
    assert receiver.next_ack(0.0).limit == 10


def test_a_larger_window_gives_credit_with_the_next_ack():
    receiver = opened()
    receiver.resize(16 * CHUNK)
    take(receiver, 1)
    receiver.on_stored(1)
    assert receiver.next_ack(0.0).limit == 17


def test_an_unanswered_offer_has_no_window():
    receiver = Receiver(offer())
    receiver.resize(CHUNK)
    assert receiver.limit == 0


# -- when to ask again


def test_it_wakes_for_the_first_of_report_and_storing():
    receiver = opened()
    take(receiver, 1, now=10.0)
    assert receiver.wake_at() == REPORT_AFTER_SECONDS  # long ago: nothing was reported yet
    receiver.next_ack(10.0)
    assert receiver.wake_at() == 10.0 + STORE_AFTER_SECONDS


def test_it_wakes_at_once_for_an_ack_that_is_due():
    receiver = opened()
    take(receiver, 1)
    receiver.on_stored(1)
    assert receiver.wake_at() == 0.0


def test_positions_in_bytes_end_with_the_payload():
    receiver = opened(size=CHUNK + 1)
    assert [receiver.offset(seq) for seq in (0, 1, 2)] == [0, CHUNK, CHUNK + 1]
    assert opened(size=None).offset(2) == 2 * CHUNK
