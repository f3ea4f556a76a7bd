"""The transfers of one connection, both ends in memory: offers, early data, answers, handles, aborts."""

from __future__ import annotations

import json

import pytest

from delivery.errors import ProtocolViolation, Refused, UsageError
from delivery.protocol import events, frames, messages
from delivery.protocol.connection import MAX_UNANSWERED_OFFERS, Connection, Limits, Side
from delivery.protocol.frames import MAX_SEQ
from delivery.protocol.messages import Abort, Accept, Finish, Nack
from delivery.protocol.states import State

from .messages_of import CHUNK, DIGEST, OTHER_DIGEST, PAYLOAD, TRANSFER
from .pair import CLIENT, SERVER, TERMS, Pair, an_offer, hello, welcome

OTHER = "11111111-2222-3333-4444-555555555555"


def say(end: Connection, **members) -> list[events.Event]:
    """Let `end` hear a message as it is on the wire."""
    return end.receive_text(json.dumps(members), 0.0)


def both_directions(test):
    """Run a test as an upload and as a delivery: the argument is the name of the sending side."""
    return pytest.mark.parametrize("side", ["client", "server"])(test)


# -- whole transfers


@both_directions
def test_an_end_has_to_send_while_a_message_a_chunk_or_a_finish_is_due(side):
    pair = Pair()
    end = getattr(pair, side)
    assert not end.has_to_send()
    end.offer(an_offer(end.side), first=False, now=0.0)
    assert end.has_to_send()  # the offer
    (event,) = pair.pump(end)
    assert not end.has_to_send()  # the answer is the other's
    pair.other(end).accept(event.receiver, stored=0, terms=TERMS, now=0.0)
    pair.pump(pair.other(end))
    sender = end.next_turn()
    while sender.chunk_due():
        assert end.has_to_send()
        pair.chunk(sender, end, bytes(CHUNK))
    assert end.has_to_send()  # finish
    sender.finish(DIGEST)
    assert not end.has_to_send()


def test_an_end_that_goes_away_has_nothing_to_send_but_messages():
    pair = Pair()
    pair.accepted(pair.server)
    pair.server.leave("server_draining")
    assert pair.server.has_to_send()
    pair.pump(pair.server)
    assert not pair.server.has_to_send()


@both_directions
def test_a_whole_transfer(side):
    pair = Pair()
    end, far = getattr(pair, side), pair.other(getattr(pair, side))
    sender, receiver = pair.accepted(end)
    for seq in range(3):
        assert end.next_turn() is sender
        (kept,) = pair.chunk(sender, end, bytes([seq]) * CHUNK)
        assert isinstance(kept, events.ChunkKept)
        assert (kept.receiver, kept.chunk.seq) == (receiver, seq)
    assert sender.finish_due()
    end.finish(sender, DIGEST)
    assert pair.pump(end) == [events.Finished(receiver)]
    receiver.on_stored(3)
    far.queue_acks(0.0)
    assert pair.pump(far) == [events.Acked(sender, progressed=True)]
    far.done(receiver, size=3 * CHUNK, sha256=DIGEST, payload=PAYLOAD)
    assert pair.pump(far) == [events.Completed(sender, DIGEST, PAYLOAD)]
    assert not end.senders
    assert not far.receivers
    assert end.next_turn() is None


@both_directions
def test_an_empty_payload(side):
    pair = Pair()
    end = getattr(pair, side)
    sender, receiver = pair.accepted(end, size=0)
    assert end.next_turn() is sender
    end.finish(sender, DIGEST)
    pair.pump(end)
    assert receiver.complete


def test_small_payloads_pass_between_the_chunks_of_a_large_one():
    pair = Pair()
    large, _ = pair.accepted(pair.client)
    assert pair.client.next_turn() is large
    pair.chunk(large, pair.client, bytes(CHUNK))
    small, _ = pair.accepted(pair.client, transfer=OTHER, size=1)
    assert pair.client.next_turn() is small


# -- offering


def test_handles_count_up_and_chunks_fit_the_receiver():
    pair = Pair()
    first, _ = pair.offered(pair.server, chunk_size=2 * CHUNK)
    second, _ = pair.offered(pair.server, transfer=OTHER)
    assert (first.handle, second.handle) == (1, 2)
    assert first.offer.chunk_size == CLIENT.chunk_size


def test_chunks_fit_into_the_peers_messages():
    client = Connection(Side.CLIENT, Limits(max_message=8_388_608, chunk_size=4_194_304), now=0.0)
    client.hello(hello())
    client.receive_text(messages.encode(welcome()), 0.0)
    sender = client.offer(an_offer(Side.CLIENT, chunk_size=4_194_304), first=False, now=0.0)
    assert sender.chunk_size + frames.HEADER_BYTES <= SERVER.max_message


def test_nothing_is_offered_before_the_welcome():
    client = Pair(greeted=False).client
    assert not client.can_offer()
    with pytest.raises(UsageError, match="cannot offer now"):
        client.offer(an_offer(Side.CLIENT), first=True, now=0.0)


def test_an_offer_that_the_peer_would_refuse_is_misuse_and_costs_no_handle():
    pair = Pair()
    with pytest.raises(UsageError, match=r"offer\.name"):
        pair.client.offer(an_offer(Side.CLIENT, name="n" * 256), first=True, now=0.0)
    assert pair.offered(pair.client)[0].handle == 1


def test_chunks_that_do_not_fit_into_our_own_messages_are_misuse():
    with pytest.raises(UsageError, match="do not fit"):
        Connection(Side.CLIENT, Limits(max_message=65_548, chunk_size=131_072), now=0.0)


def test_at_most_16_offers_are_unanswered():
    pair = Pair()
    for _ in range(MAX_UNANSWERED_OFFERS):
        assert pair.client.can_offer()
        _, receiver = pair.offered(pair.client)
    assert pair.client.unanswered() == 16
    with pytest.raises(UsageError, match="cannot offer now"):
        pair.client.offer(an_offer(Side.CLIENT), first=True, now=0.0)
    pair.server.reject(receiver, "busy", retry_after=1.0)
    (event,) = pair.pump(pair.server)
    assert isinstance(event, events.Rejected)
    assert pair.client.can_offer()


def test_a_seventeenth_unanswered_offer_is_a_violation():
    pair = Pair()
    for _ in range(MAX_UNANSWERED_OFFERS):
        pair.offered(pair.client)
    with pytest.raises(ProtocolViolation) as caught:
        pair.server.receive_text(messages.encode(an_offer(Side.CLIENT, handle=17)), 0.0)
    assert caught.value.code == 4429


# -- early data


def small(pair: Pair, *, first: bool = True, **members):
    return pair.client.offer(an_offer(Side.CLIENT, **{"size": 1_000, **members}), first=first, now=0.0)


def test_a_small_payload_takes_one_round_trip():
    pair = Pair()
    sender = small(pair)
    pair.pump(pair.client)
    (kept,) = pair.chunk(sender, pair.client, bytes(1_000))
    pair.client.finish(sender, None)
    (finished,) = pair.pump(pair.client)
    receiver = finished.receiver
    assert kept.receiver is receiver
    assert pair.server.accept(receiver, stored=0, terms=TERMS, now=0.0) == []
    receiver.on_stored(1)
    pair.server.done(receiver, size=1_000, sha256=DIGEST)
    happened = pair.pump(pair.server)
    assert [type(event) for event in happened] == [events.Accepted, events.Completed]


@pytest.mark.parametrize(("first", "size"), [(False, 1_000), (True, SERVER.early_data + 1), (True, 0), (True, None)])
def test_what_may_not_go_early_waits(first, size):
    sender = small(Pair(), first=first, size=size)
    assert sender.next_span() is None
    assert not sender.finish_due()


def test_early_data_in_larger_chunks_than_announced_is_a_violation():
    pair = Pair()
    members = {"handle": 1, "size": 10, "chunk_size": 2 * CHUNK, "name": "", "payload": PAYLOAD}
    say(pair.client, type="offer", transfer=TRANSFER, **members)
    with pytest.raises(ProtocolViolation, match="beyond the limit"):
        pair.client.receive_bytes(frames.encode(1, 0, bytes(10)), 0.0)


def test_early_data_of_a_rejected_offer_is_dropped():
    pair = Pair()
    sender = small(pair)
    (offered,) = pair.pump(pair.client)
    pair.server.reject(offered.receiver, "quota")
    assert pair.chunk(sender, pair.client, bytes(1_000)) == []
    pair.client.finish(sender, None)
    assert pair.pump(pair.client) == []


def test_damaged_early_data_is_asked_for_right_after_the_accept():
    pair = Pair()
    sender = small(pair)
    (offered,) = pair.pump(pair.client)
    assert pair.chunk(sender, pair.client, bytes(1_000), damaged=True) == []
    pair.client.finish(sender, None)
    assert pair.pump(pair.client) == []
    assert not pair.server.outbox
    happened = pair.server.accept(offered.receiver, stored=0, terms=TERMS, now=0.0)
    assert happened == [events.Rewound(offered.receiver)]
    assert [type(message) for message in pair.server.outbox] == [Accept, Nack]
    pair.pump(pair.server)
    assert sender.next_span().seq == 0


# -- answering


def test_an_accept_may_hold_and_know_the_size():
    pair = Pair()
    sender, receiver = pair.offered(pair.client, size=None)
    pair.server.accept(
        receiver, stored=CHUNK, terms=TERMS, now=0.0, hold=True, size=3 * CHUNK, expires="2030-01-01T00:00:00Z"
    )
    assert pair.pump(pair.server) == [events.Accepted(sender)]
    assert (sender.acked, sender.limit, receiver.size) == (1, 1, 3 * CHUNK)


def test_more_chunks_than_can_be_counted_are_refused():
    pair = Pair()
    _, receiver = pair.offered(pair.client, size=(MAX_SEQ + 1) * CHUNK)
    with pytest.raises(Refused, match="too_large"):
        pair.server.accept(receiver, stored=0, terms=TERMS, now=0.0)
    assert not pair.server.outbox
    assert receiver.state is State.OFFERED


def test_a_payload_that_outgrows_what_is_allowed_is_aborted():
    pair = Pair()
    sender, receiver = pair.accepted(pair.client, size=None, stored=TERMS.max_size)
    (event,) = pair.chunk(sender, pair.client, bytes(CHUNK))
    assert isinstance(event, events.ReceiverAborted)
    assert event.receiver is receiver
    assert (event.message.code, event.message.final) == ("too_large", True)
    (far,) = pair.pump(pair.server)
    assert isinstance(far, events.SenderAborted)
    assert not pair.client.senders


def test_a_damaged_chunk_is_sent_again():
    pair = Pair()
    sender, receiver = pair.accepted(pair.client)
    assert pair.chunk(sender, pair.client, bytes(CHUNK), damaged=True) == [events.Rewound(receiver)]
    assert pair.chunk(sender, pair.client, bytes(CHUNK)) == []
    assert pair.pump(pair.server) == []
    assert sender.next_span().seq == 0


def test_the_third_nack_of_a_chunk_is_an_abort():
    pair = Pair()
    sender, receiver = pair.accepted(pair.client)
    for _ in range(2):
        pair.chunk(sender, pair.client, bytes(CHUNK), damaged=True)
        pair.pump(pair.server)
    (event,) = pair.chunk(sender, pair.client, bytes(CHUNK), damaged=True)
    assert isinstance(event, events.ReceiverAborted)
    assert (event.message.code, event.message.final) == ("integrity", False)
    (far,) = pair.pump(pair.server)
    assert isinstance(far, events.SenderAborted)
    assert receiver.state is sender.state is State.DETACHED


def test_lost_chunks_are_asked_for_again():
    pair = Pair()
    sender, receiver = pair.accepted(pair.client)
    for _ in range(3):
        pair.chunk(sender, pair.client, bytes(CHUNK))
    assert pair.server.rewind(receiver, 1, "lost") == [events.Rewound(receiver)]
    pair.pump(pair.server)
    assert sender.next_span().seq == 1


@pytest.mark.parametrize("seq", [0, 2, 3])
def test_a_late_report_of_a_loss_changes_nothing(seq):
    """Chunk 0 is stored meanwhile, and 2 was asked for again already: a second nack would come too late."""
    pair = Pair()
    sender, receiver = pair.accepted(pair.client)
    for _ in range(3):
        pair.chunk(sender, pair.client, bytes(CHUNK))
    receiver.on_stored(1)
    pair.server.rewind(receiver, 2, "lost")
    pair.server.outbox.clear()
    assert pair.server.rewind(receiver, seq, "lost") == []
    assert not pair.server.outbox


def test_acks_are_queued_for_who_has_news():
    pair = Pair()
    sender, receiver = pair.accepted(pair.client)
    pair.accepted(pair.client, transfer=OTHER)
    pair.chunk(sender, pair.client, bytes(CHUNK))
    receiver.on_stored(1)
    pair.server.queue_acks(0.0)
    (ack,) = pair.server.outbox
    assert (ack.handle, ack.seq) == (sender.handle, 1)


def test_an_answer_for_another_transfer_is_a_violation():
    pair = Pair()
    pair.offered(pair.client)
    with pytest.raises(ProtocolViolation, match="do not match"):
        say(pair.client, type="reject", transfer=OTHER, handle=1, code="busy")


# -- finish


def test_a_delivery_is_finished_with_its_digest():
    pair = Pair()
    sender, _ = pair.accepted(pair.server, size=0)
    with pytest.raises(UsageError, match="digest"):
        pair.server.finish(sender, None)
    with pytest.raises(ProtocolViolation, match="without its digest"):
        pair.client.receive_text(messages.encode(Finish(handle=1, chunks=0, size=0)), 0.0)


def test_a_wrong_digest_in_a_clients_done_is_a_violation():
    pair = Pair()
    sender, _ = pair.accepted(pair.server, size=0)
    pair.server.finish(sender, DIGEST)
    with pytest.raises(ProtocolViolation, match="another digest"):
        say(pair.server, type="done", transfer=TRANSFER, handle=1, size=0, sha256=OTHER_DIGEST)


# -- handles


def messages_for(handle: int) -> list[dict[str, object]]:
    named = {"transfer": TRANSFER, "handle": handle}
    return [
        {"type": "accept", **named, "chunk_size": CHUNK, "seq": 0, "limit": 1},
        {"type": "reject", **named, "code": "busy"},
        {"type": "ack", "handle": handle, "seq": 0, "received": 0, "limit": 1},
        {"type": "nack", "handle": handle, "seq": 0, "code": "lost"},
        {"type": "done", **named, "size": 0, "sha256": DIGEST},
        {"type": "finish", "handle": handle, "chunks": 0, "size": 0, "sha256": DIGEST},
        {"type": "abort", **named, "code": "cancelled", "final": True},
    ]


@both_directions
@pytest.mark.parametrize("message", messages_for(5), ids=lambda message: message["type"])
def test_a_message_for_a_handle_that_was_never_offered_is_a_violation(side, message):
    with pytest.raises(ProtocolViolation, match="never offered"):
        say(getattr(Pair(), side), **message)


@both_directions
@pytest.mark.parametrize("message", messages_for(1), ids=lambda message: message["type"])
def test_a_message_for_a_handle_that_is_no_longer_live_is_dropped(side, message):
    pair = Pair()
    end = getattr(pair, side)
    sender, _ = pair.accepted(end)
    end.abort(sender, "cancelled", final=True)
    pair.pump(end)
    _, receiver = pair.accepted(pair.other(end))
    end.abort(receiver, "cancelled", final=True)
    end.outbox.clear()
    assert say(end, **message) == []


@pytest.mark.parametrize(("handle", "offered"), [(0, False), (1, False), (7, True), (8, False)])
def test_a_chunk_is_for_a_handle_that_was_offered(handle, offered):
    pair = Pair()
    (event,) = pair.server.receive_text(messages.encode(an_offer(Side.CLIENT, handle=7)), 0.0)
    pair.server.reject(event.receiver, "busy")
    chunk = frames.encode(handle, 0, b"x")
    if offered:
        assert pair.server.receive_bytes(chunk, 0.0) == []
    else:
        with pytest.raises(ProtocolViolation, match="never offered"):
            pair.server.receive_bytes(chunk, 0.0)


def test_handles_rise():
    pair = Pair()
    pair.server.receive_text(messages.encode(an_offer(Side.CLIENT, handle=7)), 0.0)
    with pytest.raises(ProtocolViolation, match="does not rise"):
        pair.server.receive_text(messages.encode(an_offer(Side.CLIENT, handle=7)), 0.0)


# -- ending early


@both_directions
def test_a_sender_may_end_its_transfer(side):
    pair = Pair()
    end = getattr(pair, side)
    sender, receiver = pair.accepted(end)
    end.abort(sender, "paused", "lunch", final=False)
    (event,) = pair.pump(end)
    assert isinstance(event, events.ReceiverAborted)
    assert (event.receiver, event.message.message) == (receiver, "lunch")
    assert receiver.state is sender.state is State.DETACHED
    assert not end.senders
    assert not pair.other(end).receivers


@both_directions
def test_a_receiver_may_end_its_transfer(side):
    pair = Pair()
    end = getattr(pair, side)
    sender, receiver = pair.accepted(pair.other(end))
    end.abort(receiver, "busy", final=False, retry_after=2.0)
    (event,) = pair.pump(end)
    assert isinstance(event, events.SenderAborted)
    assert (event.sender, event.message.retry_after) == (sender, 2.0)


def test_an_abort_means_the_direction_whose_transfer_it_names():
    pair = Pair()
    upload, _ = pair.accepted(pair.client)
    _, delivery = pair.accepted(pair.server, transfer=OTHER)
    assert upload.handle == delivery.handle
    (event,) = say(pair.client, type="abort", transfer=OTHER, handle=1, code="expired", final=True)
    assert event == events.ReceiverAborted(delivery, Abort(transfer=OTHER, handle=1, code="expired", final=True))
    assert upload.live


def test_a_transfer_that_ended_meanwhile_has_left_already():
    pair = Pair()
    sender, _ = pair.accepted(pair.client)
    pair.client._forget(sender)
    pair.client.abort(sender, "paused", final=False)
    assert pair.client.next_turn() is None


def test_an_abort_beats_nothing_that_is_done():
    pair = Pair()
    sender, receiver = pair.offered(pair.client)
    pair.server.done(receiver, size=3 * CHUNK, sha256=DIGEST)
    pair.client.abort(sender, "cancelled", final=True)
    assert pair.pump(pair.client) == []
    assert pair.pump(pair.server) == []
    assert receiver.state is State.DONE
