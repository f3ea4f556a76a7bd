"""The sending side: spans, credit, going back, early data, the end. Numbers are chunks of 4 KiB; ten of them."""

from __future__ import annotations

import pytest

from delivery.errors import ProtocolViolation, UsageError
from delivery.protocol.sender import STALL_SECONDS, Sender, Span
from delivery.protocol.states import State

from .messages_of import CHUNK, DIGEST, OTHER_DIGEST, abort, accept, ack, done, nack, offer, reject


def opened(*, seq: int = 0, limit: int = 10, **members) -> Sender:
    sender = Sender(offer(**members))
    sender.on_accept(accept(seq=seq, limit=limit), 0.0)
    return sender


def send(sender: Sender, count: int = 100) -> list[int]:
    """Send up to `count` chunks, as far as credit goes; return their numbers."""
    numbers = []
    while len(numbers) < count and (span := sender.next_span()) is not None:
        sender.chunk_sent(span.seq, 0.0)
        numbers.append(span.seq)
    return numbers


def finished(**members) -> Sender:
    sender = opened(**members)
    send(sender)
    sender.finish(DIGEST)
    return sender


# -- sending


def test_nothing_is_sent_before_the_accept():
    sender = Sender(offer())
    assert sender.next_span() is None
    assert not sender.finish_due()


def test_chunks_go_in_order_up_to_the_limit():
    sender = opened(limit=3)
    assert send(sender) == [0, 1, 2]
    sender.on_ack(ack(1, limit=5), 0.0)
    assert send(sender) == [3, 4]


def test_a_resume_begins_where_the_receiver_says():
    sender = opened(seq=4, limit=6)
    assert send(sender) == [4, 5]
    assert sender.acked_bytes == 4 * CHUNK


def test_spans_cover_the_payload_and_the_last_is_short():
    sender = opened(size=CHUNK + 1)
    assert sender.next_span() == Span(0, 0, CHUNK)
    sender.chunk_sent(0, 0.0)
    assert sender.next_span() == Span(1, CHUNK, 1)
    sender.chunk_sent(1, 0.0)
    assert sender.next_span() is None


def test_the_accepted_chunk_size_holds():
    sender = Sender(offer(chunk_size=4 * CHUNK))
    sender.on_accept(accept(chunk_size=CHUNK, seq=3), 0.0)
    assert sender.next_span() == Span(3, 3 * CHUNK, CHUNK)
    assert sender.chunks == 10


def test_a_pause_stops_chunks_and_finish():
    sender = opened(size=CHUNK)
    sender.paused = True
    assert sender.next_span() is None
    sender.paused = False
    send(sender)
    assert sender.finish_due()
    sender.paused = True
    assert not sender.finish_due()


def test_only_the_chunk_whose_turn_it_is_may_be_sent():
    with pytest.raises(UsageError, match="expected chunk 0"):
        opened().chunk_sent(1, 0.0)


# -- unknown size


def test_an_unknown_size_ends_where_the_source_does():
    sender = opened(size=None)
    assert sender.next_span() == Span(0, 0, CHUNK)
    assert sender.chunks is None
    assert not sender.finish_due()
    sender.end(100)
    sender.chunk_sent(0, 0.0)
    assert sender.finish_due()
    message = sender.finish(None)
    assert (message.chunks, message.size, message.sha256) == (1, 100, None)


def test_an_unknown_size_may_end_right_before_a_chunk():
    sender = opened(size=None)
    sender.chunk_sent(0, 0.0)
    sender.end(CHUNK)
    assert sender.next_span() is None
    assert sender.finish(None).chunks == 1


def test_everything_may_be_stored_already_behind_a_short_chunk():
    sender = opened(size=None, seq=2, limit=6)
    assert sender.next_span() == Span(2, 2 * CHUNK, CHUNK)
    sender.end(CHUNK + 100)
    assert sender.next_span() is None
    assert sender.finish(None).chunks == 2


@pytest.mark.parametrize("size", [-1, 0, CHUNK])
def test_a_source_cannot_end_before_what_was_sent(size):
    sender = opened(size=None)
    send(sender, 2)
    with pytest.raises(UsageError, match="2 chunks of 4096 were sent"):
        sender.end(size)


def test_a_source_cannot_end_elsewhere_than_offered():
    sender = opened()
    sender.end(10 * CHUNK)
    with pytest.raises(UsageError, match="were offered"):
        sender.end(9 * CHUNK)


# -- finish


def test_finish_comes_once_after_the_last_chunk():
    sender = opened()
    send(sender, 9)
    assert not sender.finish_due()
    with pytest.raises(UsageError, match="before everything was sent"):
        sender.finish(DIGEST)
    send(sender)
    assert sender.finish_due()
    message = sender.finish(DIGEST)
    assert (message.handle, message.chunks, message.size, message.sha256) == (7, 10, 10 * CHUNK, DIGEST)
    assert sender.state is State.FINISHING
    assert not sender.finish_due()
    assert sender.next_span() is None


def test_an_empty_payload_is_finished_at_once():
    sender = opened(size=0, limit=0)
    assert sender.next_span() is None
    assert sender.finish(None).chunks == 0


def test_more_chunks_than_can_be_counted_cannot_be_finished():
    sender = opened(size=None)
    sender.size = 2**32 * CHUNK
    sender.next_seq = 2**32
    with pytest.raises(UsageError, match="more chunks"):
        sender.finish(None)


def test_the_digest_of_the_offer_is_not_forgotten_at_finish():
    sender = opened(sha256=DIGEST)
    send(sender)
    sender.finish(None)
    with pytest.raises(ProtocolViolation, match="another digest"):
        sender.on_done(done(sha256=OTHER_DIGEST))


# -- early data


def early(size: int = 100) -> Sender:
    return Sender(offer(size=size), early=True)


def test_early_data_goes_before_the_answer():
    sender = early()
    assert sender.next_span() == Span(0, 0, 100)
    sender.chunk_sent(0, 0.0)
    assert sender.finish_due()
    sender.finish(DIGEST)
    assert sender.state is State.OFFERED


def test_early_data_is_not_sent_again_after_the_accept():
    sender = early()
    send(sender)
    sender.finish(DIGEST)
    sender.on_accept(accept(limit=0), 0.0)
    assert sender.state is State.FINISHING
    assert sender.next_span() is None
    assert sender.in_flight


def test_early_data_may_be_half_said_when_the_accept_comes():
    sender = early()
    send(sender)
    sender.on_accept(accept(), 0.0)
    assert sender.next_span() is None
    assert sender.finish_due()


def test_early_data_may_be_stored_already():
    sender = early()
    send(sender)
    sender.finish(DIGEST)
    sender.on_accept(accept(seq=1, limit=1), 0.0)
    assert not sender.in_flight
    assert sender.state is State.FINISHING


def test_early_data_in_other_chunks_than_accepted_is_sent_again():
    sender = Sender(offer(size=2 * CHUNK, chunk_size=2 * CHUNK), early=True)
    send(sender)
    sender.finish(DIGEST)
    sender.on_accept(accept(seq=1), 0.0)
    assert send(sender) == [1]
    assert sender.finish_due()


# -- what the receiver says


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"chunk_size": 2 * CHUNK}, "larger chunk size"),
        ({"chunk_size": CHUNK - 1}, "larger chunk size"),
        ({"seq": 3, "limit": 2}, "limit below seq"),
        ({"seq": 11, "limit": 12}, "beyond the payload"),
    ],
)
def test_an_impossible_accept_is_a_violation(members, reason):
    with pytest.raises(ProtocolViolation, match=reason):
        Sender(offer()).on_accept(accept(**members), 0.0)


def test_an_accept_of_more_chunks_than_can_be_counted_is_a_violation():
    with pytest.raises(ProtocolViolation, match="can be counted"):
        Sender(offer(size=2**53 - 1)).on_accept(accept(), 0.0)


def test_a_second_accept_is_a_violation():
    with pytest.raises(ProtocolViolation, match="accept"):
        opened().on_accept(accept(), 0.0)


def test_an_ack_moves_the_position():
    sender = opened()
    send(sender, 5)
    assert sender.on_ack(ack(2, received=4), 0.0)
    assert (sender.acked, sender.received, sender.in_flight) == (2, 4, True)
    assert (sender.acked_bytes, sender.received_bytes) == (2 * CHUNK, 4 * CHUNK)
    assert not sender.on_ack(ack(2, received=5), 0.0)
    sender.on_ack(ack(5), 0.0)
    assert not sender.in_flight


def test_the_longest_acked_chunk_may_be_the_only_one():
    sender = opened(size=CHUNK - 1)
    assert sender.longest_acked == 0
    send(sender)
    sender.on_ack(ack(1), 0.0)
    assert sender.longest_acked == CHUNK - 1

    longer = opened()
    send(longer, 2)
    longer.on_ack(ack(2), 0.0)
    assert longer.longest_acked == CHUNK


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (ack(1), "falls"),
        (ack(3, received=2), "above received"),
        (ack(6), "beyond what was sent"),
        (ack(2, received=6), "beyond what was sent"),
        (ack(2, limit=9), "limit falls"),
    ],
)
def test_an_impossible_ack_is_a_violation(message, reason):
    sender = opened()
    send(sender, 5)
    sender.on_ack(ack(2), 0.0)
    with pytest.raises(ProtocolViolation, match=reason):
        sender.on_ack(message, 0.0)


def test_an_ack_before_the_accept_is_a_violation():
    with pytest.raises(ProtocolViolation, match="ack of a transfer that is offered"):
        Sender(offer()).on_ack(ack(0), 0.0)


def test_a_nack_sends_the_sender_back_and_finish_is_repeated():
    sender = finished()
    sender.on_ack(ack(3), 0.0)
    sender.on_nack(nack(6))
    assert sender.state is State.OPEN
    assert sender.received == 6
    assert send(sender) == [6, 7, 8, 9]
    assert sender.finish_due()


def test_an_ack_of_what_went_before_a_nack_stands():
    sender = opened()
    send(sender, 8)
    sender.on_nack(nack(2))
    sender.on_ack(ack(4), 0.0)
    assert send(sender, 1) == [4]


@pytest.mark.parametrize("seq", [2, 5])
def test_a_nack_outside_of_what_is_in_flight_is_a_violation(seq):
    sender = opened()
    send(sender, 5)
    sender.on_ack(ack(3), 0.0)
    with pytest.raises(ProtocolViolation, match="nack"):
        sender.on_nack(nack(seq))


def test_done_acks_everything():
    sender = finished()
    sender.on_done(done())
    assert sender.state is State.DONE
    assert sender.acked == 10
    assert sender.acked_bytes == 10 * CHUNK


def test_an_offer_may_be_answered_by_done():
    sender = Sender(offer(size=None))
    sender.on_done(done())
    assert sender.state is State.DONE
    assert sender.size == 10 * CHUNK


@pytest.mark.parametrize(("wrong", "reason"), [({"size": 1}, "size"), ({"sha256": OTHER_DIGEST}, "digest")])
def test_done_with_something_else_than_was_sent_is_a_violation(wrong, reason):
    with pytest.raises(ProtocolViolation, match=reason):
        finished().on_done(done(**wrong))


def test_done_before_finish_is_a_violation():
    sender = opened()
    send(sender)
    with pytest.raises(ProtocolViolation, match="done of a transfer that is open"):
        sender.on_done(done())


def test_a_reject_ends_it_here():
    sender = Sender(offer())
    sender.on_reject(reject())
    assert sender.state is State.REJECTED


@pytest.mark.parametrize(("final", "state"), [(True, State.ABORTED), (False, State.DETACHED)])
def test_an_abort_ends_or_detaches(final, state):
    sender = opened()
    sender.on_abort(abort(final=final))
    assert sender.state is state
    assert sender.next_span() is None


def test_our_own_abort_says_so():
    sender = opened()
    message = sender.abort("paused", "later", final=False, retry_after=1.0)
    assert (message.code, message.message, message.final, message.retry_after) == ("paused", "later", False, 1.0)
    assert sender.state is State.DETACHED


# -- what has not arrived


def sent_at(*times: float, **members) -> Sender:
    sender = opened(**members)
    for now in times:
        sender.chunk_sent(sender.next_seq, now)
    return sender


def test_the_oldest_chunk_that_is_not_received_counts():
    sender = sent_at(1.0, 2.0, 3.0)
    assert sender.unreceived_since == 1.0
    sender.on_ack(ack(0, received=2), 4.0)
    assert sender.unreceived_since == 3.0
    sender.on_ack(ack(1, received=3), 5.0)
    assert sender.unreceived_since is None
    sender.chunk_sent(3, 6.0)
    assert sender.unreceived_since == 6.0


def test_a_chunk_that_is_sent_again_counts_from_then():
    sender = sent_at(1.0, 2.0, 3.0)
    sender.on_nack(nack(1))
    assert sender.unreceived_since is None
    sender.chunk_sent(1, 7.0)
    assert sender.unreceived_since == 7.0


def test_early_data_counts_from_its_accept():
    sender = Sender(offer(size=100), early=True)
    sender.chunk_sent(0, 1.0)
    assert sender.unreceived_since is None
    sender.on_accept(accept(seq=0, limit=10), 4.0)
    assert sender.unreceived_since == 4.0


def test_nothing_is_missed_of_what_is_done():
    sender = sent_at(1.0)
    sender.on_abort(abort(final=False))
    assert sender.unreceived_since is None


def test_it_tells_whether_anything_moved():
    sender = sent_at(1.0, 2.0)
    sender.on_ack(ack(0, received=0, limit=12), 3.0)
    assert not sender.moved
    sender.on_ack(ack(0, received=1, limit=12), 3.0)
    assert sender.moved


# -- stalling


def test_no_progress_with_open_credit_is_a_stall():
    sender = opened()
    send(sender, 3)
    assert not sender.stalled(STALL_SECONDS - 0.1)
    assert sender.stalled(STALL_SECONDS)


def test_progress_of_any_kind_puts_a_stall_off():
    sender = opened()
    send(sender, 3)
    sender.on_ack(ack(0, received=1), 30.0)
    assert not sender.stalled(STALL_SECONDS)
    sender.on_ack(ack(0, received=1), 40.0)  # says nothing new
    assert sender.stalled(30.0 + STALL_SECONDS)


def test_a_receiver_that_holds_does_not_stall():
    sender = opened(limit=3)
    send(sender)
    assert not sender.stalled(1_000.0)


def test_a_sender_that_is_idle_by_itself_does_not_stall():
    sender = opened()
    sender.paused = True
    assert not sender.stalled(1_000.0)


def test_a_pause_of_the_producer_is_not_counted_when_it_goes_on():
    sender = opened()
    sender.paused = True
    assert not sender.stalled(7_200.0)
    sender.paused = False
    assert not sender.stalled(7_200.0 + STALL_SECONDS - 0.1)
    assert sender.stalled(7_200.0 + STALL_SECONDS)


def test_waiting_for_the_digest_of_what_is_stored_is_no_stall():
    sender = finished()
    sender.on_ack(ack(10, limit=20), 0.0)
    assert not sender.stalled(1_000.0)


def test_unacked_chunks_after_finish_stall():
    sender = finished(limit=20)
    assert sender.stalled(STALL_SECONDS)


def test_an_unanswered_offer_does_not_stall():
    assert not Sender(offer()).stalled(1_000.0)
