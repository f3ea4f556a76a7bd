"""The receiving side: what may come, going back, the end. Numbers are chunks of 4 KiB; ten of them, window 8."""

from __future__ import annotations

import pytest

from delivery.errors import MessagesLost, ProtocolViolation, Refused, TransferAborted, UsageError
from delivery.protocol.frames import MAX_SEQ
from delivery.protocol.messages import Abort, Nack
from delivery.protocol.receiver import Receiver, Taken, Terms
from delivery.protocol.states import State

from .messages_of import CHUNK, DIGEST, OTHER_DIGEST, abort, chunk, finish, offer
from .vectors import load, name_of

TERMS = Terms(window=8 * CHUNK, segment_size=4 * CHUNK, max_size=20 * CHUNK)


def accept(receiver: Receiver, *, stored: int = 0, chunk_size: int = CHUNK, **more):
    return receiver.accept(chunk_size=chunk_size, stored=stored, terms=TERMS, now=0.0, **more)


def opened(*, stored: int = 0, **members) -> Receiver:
    receiver = Receiver(offer(**members))
    accept(receiver, stored=stored * CHUNK)
    return receiver


def take(receiver: Receiver, count: int) -> None:
    for _ in range(count):
        assert receiver.on_chunk(chunk(receiver.received), 0.0) is Taken.KEPT


def filled(**members) -> Receiver:
    """Return a receiver that took in all ten chunks and stored them."""
    receiver = opened(**members)
    take(receiver, 8)
    receiver.on_stored(8)
    receiver.next_ack(0.0)
    take(receiver, 2)
    receiver.on_stored(10)
    return receiver


# -- answering the offer


@pytest.mark.parametrize("vector", load("chunk_sizes")["agreed"], ids=name_of)
def test_the_agreed_chunk_size_and_position(vector):
    receiver = Receiver(offer(size=vector["size"], chunk_size=vector["offered"]))
    answer = accept(receiver, stored=vector["stored"], chunk_size=vector["announced"])
    assert (answer.chunk_size, answer.seq, receiver.chunks) == (vector["chunk_size"], vector["seq"], vector["chunks"])


def test_an_accept_gives_one_window_of_credit():
    answer = accept(Receiver(offer()), stored=2 * CHUNK, expires="2030-01-01T00:00:00Z")
    assert (answer.seq, answer.limit, answer.expires) == (2, 10, "2030-01-01T00:00:00Z")


@pytest.mark.parametrize(("size", "stored"), [(10 * CHUNK, 100), (10 * CHUNK, 10 * CHUNK + 1), (100, 4096)])
def test_a_place_between_no_two_chunks_is_misuse(size, stored):
    receiver = Receiver(offer(size=size))
    with pytest.raises(UsageError, match="cannot go on"):
        accept(receiver, stored=stored)
    assert receiver.state is State.OFFERED


def test_a_size_that_is_known_from_elsewhere_counts():
    receiver = Receiver(offer(size=None))
    answer = accept(receiver, stored=CHUNK + 100, size=CHUNK + 100)
    assert answer.seq == receiver.chunks == 2


def test_a_short_last_chunk_that_is_stored_tells_the_unknown_size():
    receiver = Receiver(offer(size=None))
    assert accept(receiver, stored=CHUNK + 100).seq == 2
    assert receiver.on_finish(finish(2, CHUNK + 100))
    assert receiver.complete


def test_more_chunks_than_can_be_counted_are_refused():
    receiver = Receiver(offer(size=(MAX_SEQ + 1) * CHUNK))
    with pytest.raises(Refused) as caught:
        accept(receiver)
    assert (caught.value.code, caught.value.max_size) == ("too_large", MAX_SEQ * CHUNK)
    assert receiver.reject("too_large", max_size=MAX_SEQ * CHUNK).max_size == MAX_SEQ * CHUNK


def test_an_offer_is_answered_once():
    receiver = opened()
    with pytest.raises(UsageError, match="accept"):
        accept(receiver)
    with pytest.raises(UsageError, match="reject"):
        receiver.reject("busy")


def test_a_reject_names_a_code_of_the_protocol():
    receiver = Receiver(offer())
    with pytest.raises(UsageError, match="nonsense"):
        receiver.reject("nonsense")
    message = receiver.reject("busy", "later", retry_after=2.0)
    assert (message.transfer, message.handle, message.code) == (receiver.transfer, 7, "busy")
    assert (message.message, message.retry_after) == ("later", 2.0)
    assert receiver.state is State.REJECTED


# -- chunks


def test_chunks_are_kept_in_order():
    receiver = opened(size=CHUNK + 1)
    assert receiver.on_chunk(chunk(0), 0.0) is Taken.KEPT
    assert receiver.on_chunk(chunk(1, 1), 0.0) is Taken.KEPT
    assert receiver.received == 2


def test_what_was_taken_in_is_dropped_unread_whatever_its_bytes():
    receiver = opened()
    take(receiver, 3)
    assert receiver.on_chunk(chunk(0, 1, intact=False), 0.0) is Taken.DROPPED
    assert receiver.received == 3


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (chunk(8), "beyond the limit"),
        (chunk(3, CHUNK - 1), "wrong length"),
        (chunk(3, CHUNK + 1), "wrong length"),
    ],
)
def test_a_chunk_that_may_not_come_is_a_violation(wrong, reason):
    receiver = opened()
    take(receiver, 3)
    with pytest.raises(ProtocolViolation, match=reason):
        receiver.on_chunk(wrong, 0.0)


def test_a_chunk_that_leaves_a_gap_says_that_messages_were_swallowed():
    receiver = opened()
    take(receiver, 3)
    with pytest.raises(MessagesLost) as caught:
        receiver.on_chunk(chunk(4), 0.0)
    assert caught.value.code == 1009
    assert receiver.received == 3


@pytest.mark.parametrize(("length", "ok"), [(100, True), (99, False), (101, False), (CHUNK, False)])
def test_the_last_chunk_has_exactly_the_rest(length, ok):
    receiver = opened(size=100)
    if ok:
        assert receiver.on_chunk(chunk(0, length), 0.0) is Taken.KEPT
    else:
        with pytest.raises(ProtocolViolation, match="wrong length"):
            receiver.on_chunk(chunk(0, length), 0.0)


def test_a_chunk_past_the_end_is_a_violation():
    receiver = opened(size=CHUNK)
    take(receiver, 1)
    with pytest.raises(ProtocolViolation, match="past the end"):
        receiver.on_chunk(chunk(1), 0.0)


def test_a_chunk_after_finish_is_a_violation():
    receiver = opened(size=None)
    take(receiver, 1)
    receiver.on_finish(finish(1, CHUNK))
    with pytest.raises(ProtocolViolation, match="past the end"):
        receiver.on_chunk(chunk(1), 0.0)


def test_a_chunk_before_the_accept_is_a_violation():
    with pytest.raises(ProtocolViolation, match="beyond the limit"):
        Receiver(offer()).on_chunk(chunk(0), 0.0)


# -- unknown size


def test_the_first_short_chunk_is_the_last():
    receiver = opened(size=None)
    take(receiver, 1)
    assert receiver.on_chunk(chunk(1, 100), 0.0) is Taken.KEPT
    assert receiver.size == CHUNK + 100
    with pytest.raises(ProtocolViolation, match="past the end"):
        receiver.on_chunk(chunk(2), 0.0)


def test_a_chunk_longer_than_agreed_is_a_violation_even_so():
    with pytest.raises(ProtocolViolation, match="wrong length"):
        opened(size=None).on_chunk(chunk(0, CHUNK + 1), 0.0)


def test_a_payload_that_outgrows_what_is_allowed_is_aborted():
    receiver = opened(size=None, stored=20)
    with pytest.raises(TransferAborted) as caught:
        receiver.on_chunk(chunk(20, 1), 0.0)
    assert (caught.value.code, caught.value.final) == ("too_large", True)


def test_a_payload_that_outgrows_the_numbers_is_aborted():
    receiver = Receiver(offer(size=None))
    terms = Terms(window=8 * CHUNK, segment_size=CHUNK, max_size=2**60)
    receiver.accept(chunk_size=CHUNK, stored=MAX_SEQ * CHUNK, terms=terms, now=0.0)
    with pytest.raises(TransferAborted, match="too_large"):
        receiver.on_chunk(chunk(MAX_SEQ), 0.0)


def test_a_short_chunk_that_is_lost_takes_the_size_with_it():
    receiver = opened(size=None)
    receiver.on_chunk(chunk(0, 100), 0.0)
    receiver.lost(0, "lost")
    assert receiver.size is None
    assert receiver.on_chunk(chunk(0, 100), 0.0) is Taken.KEPT
    assert receiver.size == 100


# -- going back


def test_a_damaged_chunk_is_asked_for_again():
    receiver = opened()
    take(receiver, 3)
    assert receiver.on_chunk(chunk(3, intact=False), 0.0) is Taken.DAMAGED
    message = receiver.lost(3, "checksum")
    assert (message.handle, message.seq, message.code) == (7, 3, "checksum")


def test_everything_is_dropped_until_the_chunk_comes():
    receiver = opened()
    take(receiver, 5)
    receiver.lost(2, "lost")
    assert receiver.on_chunk(chunk(5), 0.0) is Taken.DROPPED
    assert receiver.on_chunk(chunk(100, 1), 0.0) is Taken.DROPPED
    assert not receiver.on_finish(finish())
    assert receiver.on_chunk(chunk(2), 0.0) is Taken.KEPT
    assert receiver.on_chunk(chunk(3), 0.0) is Taken.KEPT


def test_finish_is_to_be_said_again():
    receiver = opened(size=3 * CHUNK)
    take(receiver, 3)
    receiver.on_finish(finish(3, 3 * CHUNK))
    receiver.lost(1, "lost")
    assert receiver.state is State.OPEN
    take(receiver, 2)
    assert not receiver.complete
    assert receiver.on_finish(finish(3, 3 * CHUNK))


def test_runs_from_there_on_are_void():
    receiver = opened()
    take(receiver, 6)
    receiver.rest(0.0)
    receiver.lost(2, "lost")
    assert receiver.handed == receiver.received == 2


@pytest.mark.parametrize("seq", [1, 5])
def test_what_is_stored_or_never_came_cannot_be_lost(seq):
    receiver = opened()
    take(receiver, 5)
    receiver.on_stored(2)
    with pytest.raises(UsageError, match="cannot go back"):
        receiver.lost(seq, "lost")


def test_the_third_nack_of_a_chunk_is_an_abort_whatever_came_between():
    receiver = opened()
    take(receiver, 3)
    assert isinstance(receiver.lost(2, "lost"), Nack)
    take(receiver, 2)
    assert isinstance(receiver.lost(3, "lost"), Nack)
    assert receiver.on_chunk(chunk(3, intact=False), 0.0) is Taken.DAMAGED
    assert isinstance(receiver.lost(3, "checksum"), Nack)
    assert isinstance(receiver.lost(2, "lost"), Nack)
    take(receiver, 1)
    answer = receiver.lost(2, "lost")
    assert isinstance(answer, Abort)
    assert (answer.code, answer.final) == ("integrity", False)
    assert receiver.state is State.DETACHED


def test_nacks_of_what_is_stored_meanwhile_are_forgotten():
    receiver = opened()
    take(receiver, 3)
    receiver.lost(1, "lost")
    take(receiver, 2)
    receiver.on_stored(3)
    assert not receiver._nacks


# -- finish and done


def test_finish_freezes_the_transfer():
    receiver = opened(size=CHUNK)
    take(receiver, 1)
    assert receiver.on_finish(finish(1, CHUNK))
    assert receiver.state is State.FINISHING
    assert not receiver.on_finish(finish(1, CHUNK))
    assert not receiver.complete
    receiver.on_stored(1)
    assert receiver.complete


@pytest.mark.parametrize(("chunks", "size"), [(2, 3 * CHUNK), (3, 3 * CHUNK - 1), (3, 2 * CHUNK)])
def test_wrong_counts_are_a_violation(chunks, size):
    receiver = opened(size=3 * CHUNK)
    take(receiver, 3)
    with pytest.raises(ProtocolViolation, match="wrong counts"):
        receiver.on_finish(finish(chunks, size))


@pytest.mark.parametrize(("taken", "size"), [(2, 3 * CHUNK), (0, 3 * CHUNK), (2, None)])
def test_a_finish_of_more_chunks_than_came_says_that_messages_were_swallowed(taken, size):
    receiver = opened(size=size)
    take(receiver, taken)
    with pytest.raises(MessagesLost) as caught:
        receiver.on_finish(finish(3, 3 * CHUNK))
    assert caught.value.code == 1009


def test_a_finish_whose_early_chunk_was_swallowed_says_so():
    receiver = Receiver(offer(size=100), early_data=CHUNK)
    with pytest.raises(MessagesLost):
        receiver.on_finish(finish(1, 100))


def test_an_ack_at_once_reports_what_neither_accept_nor_ack_nor_nack_said():
    receiver = opened()
    assert receiver.next_ack(0.0, at_once=True) is None
    take(receiver, 3)
    assert receiver.next_ack(0.0) is None
    assert receiver.next_ack(0.0, at_once=True).received == 3
    assert receiver.next_ack(0.0, at_once=True) is None
    receiver.lost(1, "lost")
    take(receiver, 1)
    assert receiver.next_ack(0.0, at_once=True).received == 2


def test_early_data_is_reported_although_the_accept_did_not():
    receiver = Receiver(offer(size=100), early_data=CHUNK)
    receiver.on_chunk(chunk(0, 100), 0.0)
    accept(receiver)
    assert receiver.next_ack(0.0, at_once=True).received == 1


def test_finish_before_the_last_chunk_is_a_violation():
    receiver = opened(size=3 * CHUNK)
    take(receiver, 2)
    with pytest.raises(ProtocolViolation, match="wrong counts"):
        receiver.on_finish(finish(2, 3 * CHUNK))


@pytest.mark.parametrize("size", [0, None])
def test_an_empty_payload_is_complete_with_its_finish(size):
    receiver = opened(size=size)
    assert receiver.on_finish(finish(0, 0))
    assert receiver.complete


def test_a_resume_while_the_digest_is_checked_waits_for_the_repeated_finish():
    receiver = opened(stored=10)
    assert receiver.received == 10
    assert not receiver.complete
    assert receiver.on_finish(finish())
    assert receiver.complete


def test_both_digests_of_the_sender_must_agree():
    receiver = filled(sha256=OTHER_DIGEST)
    assert receiver.expected_digests() == {OTHER_DIGEST}
    receiver.on_finish(finish())
    assert receiver.expected_digests() == {DIGEST, OTHER_DIGEST}
    assert opened().expected_digests() == set()


def test_done_says_what_was_stored():
    receiver = filled()
    receiver.on_finish(finish())
    message = receiver.done(size=10 * CHUNK, sha256=DIGEST, payload=receiver.transfer)
    assert (message.handle, message.size, message.sha256) == (7, 10 * CHUNK, DIGEST)
    assert message.payload == message.transfer == receiver.transfer
    assert receiver.state is State.DONE


@pytest.mark.parametrize("wrong", [{"size": 1, "sha256": DIGEST}, {"size": 10 * CHUNK, "sha256": OTHER_DIGEST}])
def test_done_with_something_else_than_the_sender_said_is_misuse(wrong):
    receiver = filled()
    receiver.on_finish(finish())
    with pytest.raises(UsageError, match="another size or digest"):
        receiver.done(**wrong)


def test_done_before_all_is_stored_is_misuse():
    receiver = opened(size=CHUNK)
    take(receiver, 1)
    receiver.on_finish(finish(1, CHUNK))
    with pytest.raises(UsageError, match="0 of 1 chunks stored"):
        receiver.done(size=CHUNK, sha256=DIGEST)


def test_done_before_finish_is_misuse():
    with pytest.raises(UsageError, match="cannot done"):
        filled().done(size=10 * CHUNK, sha256=DIGEST)


def test_an_offer_of_what_is_finished_is_answered_by_done():
    receiver = Receiver(offer(size=None))
    assert receiver.done(size=5, sha256=DIGEST).size == 5


# -- early data


def early(size: int = 100, *, early_data: int = CHUNK) -> Receiver:
    return Receiver(offer(size=size), early_data=early_data)


def test_early_data_stays_taken_in():
    receiver = early()
    assert receiver.on_chunk(chunk(0, 100), 0.0) is Taken.KEPT
    assert receiver.on_finish(finish(1, 100))
    assert not receiver.on_finish(finish(1, 100))
    assert receiver.state is State.OFFERED
    accept(receiver)
    assert receiver.state is State.FINISHING
    assert receiver.received == 1
    assert receiver.stored == 0


@pytest.mark.parametrize(("size", "early_data"), [(101, 100), (CHUNK + 1, 10 * CHUNK), (100, 0)])
def test_what_is_too_large_may_not_come_early(size, early_data):
    with pytest.raises(ProtocolViolation, match="beyond the limit"):
        early(size, early_data=early_data).on_chunk(chunk(0, 100), 0.0)


def test_the_finish_of_an_empty_payload_waits_for_the_accept():
    with pytest.raises(ProtocolViolation, match="before accept"):
        early(0).on_finish(finish(0, 0))


def test_only_one_chunk_may_come_early():
    receiver = early()
    receiver.on_chunk(chunk(0, 100), 0.0)
    with pytest.raises(ProtocolViolation, match="beyond the limit"):
        receiver.on_chunk(chunk(1, 100), 0.0)


def test_damaged_early_data_is_asked_for_after_the_accept():
    receiver = early()
    assert receiver.on_chunk(chunk(0, 100, intact=False), 0.0) is Taken.DAMAGED
    assert not receiver.on_finish(finish(1, 100))
    assert not receiver.owes_nack
    accept(receiver)
    assert receiver.owes_nack
    receiver.lost(0, "checksum")
    assert not receiver.owes_nack


def test_early_data_that_is_stored_already_is_not_asked_for():
    receiver = early()
    receiver.on_chunk(chunk(0, 100, intact=False), 0.0)
    accept(receiver, stored=100)
    assert not receiver.owes_nack


def test_early_data_in_other_chunks_than_accepted_is_dropped():
    receiver = Receiver(offer(size=2 * CHUNK, chunk_size=2 * CHUNK), early_data=2 * CHUNK)
    receiver.on_chunk(chunk(0, 2 * CHUNK), 0.0)
    receiver.on_finish(finish(1, 2 * CHUNK))
    assert accept(receiver, stored=CHUNK).seq == 1
    assert receiver.received == 1
    assert receiver.state is State.OPEN


# -- ending early, stalling


@pytest.mark.parametrize(("final", "state"), [(True, State.ABORTED), (False, State.DETACHED)])
def test_an_abort_ends_or_detaches(final, state):
    receiver = opened()
    receiver.on_abort(abort(final=final))
    assert receiver.state is state
    assert receiver.next_ack(100.0) is None


def test_our_own_abort_says_so():
    receiver = opened()
    message = receiver.abort("busy", "later", final=False, retry_after=1.0)
    assert (message.code, message.retry_after, receiver.state) == ("busy", 1.0, State.DETACHED)
