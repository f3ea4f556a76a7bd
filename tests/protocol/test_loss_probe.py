"""Swallowed messages: pings behind chunks come back, and the chunks did not arrive. Times are seconds."""

from __future__ import annotations

import pytest

from delivery.errors import MessagesLost
from delivery.protocol import messages
from delivery.protocol.connection import Connection
from delivery.protocol.loss_probe import CONFIRM_AFTER_SECONDS, PROBE_AFTER_SECONDS
from delivery.protocol.messages import Ack, Nack, Ping, Pong
from delivery.protocol.sender import Sender

from .messages_of import CHUNK
from .pair import Pair

SIDES = pytest.mark.parametrize("side", ["client", "server"])


def sending(side: str) -> tuple[Pair, Connection, Sender]:
    """Return a pair of which one side sends, its upload or delivery accepted at 0 s."""
    pair = Pair()
    end = getattr(pair, side)
    sender, _ = pair.accepted(end)
    return pair, end, sender


def swallow(sender: Sender, now: float = 0.0) -> None:
    """Send a chunk that never arrives."""
    sender.chunk_sent(sender.next_seq, now)


def pings(end: Connection, now: float) -> int:
    """Return how many pings `end` sends at `now`, and drop them."""
    end.tick(now)
    count = sum(isinstance(message, Ping) for message in end.outbox)
    end.outbox.clear()
    return count


def exchange(pair: Pair, end: Connection, now: float) -> None:
    """Have `end` send what is due at `now`, and bring it the answers."""
    end.sent(now)  # no heartbeat is due
    end.tick(now)
    pair.pump(end, now)
    pair.pump(pair.other(end), now)


@SIDES
def test_two_pongs_without_the_chunk_prove_that_it_was_swallowed(side):
    pair, end, sender = sending(side)
    swallow(sender)
    exchange(pair, end, PROBE_AFTER_SECONDS)
    with pytest.raises(MessagesLost) as caught:
        exchange(pair, end, PROBE_AFTER_SECONDS + CONFIRM_AFTER_SECONDS)
    assert caught.value.code == 1009


@SIDES
def test_a_chunk_that_arrived_is_reported_before_the_pong(side):
    pair, end, sender = sending(side)
    pair.chunk(sender, end, bytes(CHUNK))
    exchange(pair, end, PROBE_AFTER_SECONDS)
    assert sender.received == 1
    exchange(pair, end, PROBE_AFTER_SECONDS + CONFIRM_AFTER_SECONDS)


@SIDES
def test_a_peer_that_reports_behind_its_pong_is_given_a_second(side):
    """Peers of before this rule say pong at once, and `received` at most half a second later."""
    pair, end, sender = sending(side)
    swallow(sender)
    exchange(pair, end, PROBE_AFTER_SECONDS)
    late = Ack(handle=sender.handle, seq=0, received=1, limit=sender.limit)
    end.receive_text(messages.encode(late), PROBE_AFTER_SECONDS + 0.5)
    exchange(pair, end, PROBE_AFTER_SECONDS + CONFIRM_AFTER_SECONDS)
    assert pings(end, PROBE_AFTER_SECONDS + CONFIRM_AFTER_SECONDS) == 0


def test_the_first_ping_comes_5_s_after_the_oldest_chunk_and_the_second_1_s_after_its_pong():
    _pair, end, sender = sending("server")
    swallow(sender, 1.0)
    end.sent(5.9)
    assert end.wake_at() == 6.0
    assert pings(end, 5.9) == 0
    end.sent(6.0)
    end.receive_text('{"type":"pong","id":9}', 6.0)
    assert pings(end, 6.0) == 1
    assert end.wake_at() > 9.0  # a pong comes first
    assert pings(end, 7.9) == 0  # one at a time
    end.receive_text(messages.encode(Pong(id=1)), 8.0)
    assert end.wake_at() == 9.0
    assert pings(end, 8.9) == 0
    assert pings(end, 9.0) == 1


def test_a_pong_to_another_ping_proves_nothing():
    _pair, end, sender = sending("client")
    swallow(sender)
    end.tick(PROBE_AFTER_SECONDS)
    for number in (7, 8, 9):
        end.receive_text(messages.encode(Pong(id=number)), 20.0)


def test_a_nack_in_between_proves_that_the_receiver_hears():
    pair, end, sender = sending("client")
    swallow(sender)
    exchange(pair, end, PROBE_AFTER_SECONDS)
    end.receive_text(messages.encode(Nack(handle=sender.handle, seq=0, code="lost")), 5.5)
    swallow(sender, 5.5)
    exchange(pair, end, PROBE_AFTER_SECONDS + CONFIRM_AFTER_SECONDS)
    exchange(pair, end, 10.5)
    with pytest.raises(MessagesLost):
        exchange(pair, end, 11.5)


def test_an_abort_in_between_ends_the_suspicion():
    pair, end, sender = sending("client")
    swallow(sender)
    exchange(pair, end, PROBE_AFTER_SECONDS)
    pair.server.abort(next(iter(pair.server.receivers.values())), "busy", final=False)
    pair.pump(pair.server)
    exchange(pair, end, PROBE_AFTER_SECONDS + CONFIRM_AFTER_SECONDS)


def test_an_offer_that_nobody_answers_is_not_suspected():
    pair = Pair()
    sender, _ = pair.offered(pair.client, first=True, size=100)
    swallow(sender)
    assert pings(pair.client, 9.9) == 0


def test_a_slow_line_is_waited_for():
    """A ping behind a chunk that takes a minute comes back a minute later, and the chunk has arrived by then."""
    _pair, end, sender = sending("client")
    swallow(sender)
    for now in range(5, 60, 10):
        assert pings(end, now) <= 1  # beside it, the heartbeat's
        end.heard(now)
    arrived = Ack(handle=sender.handle, seq=0, received=1, limit=sender.limit)
    end.receive_text(messages.encode(arrived), 60.0)
    end.receive_text(messages.encode(Pong(id=1)), 60.0)
    assert pings(end, 61.0) <= 1
    end.receive_text(messages.encode(Pong(id=2)), 61.0)


def test_a_server_that_goes_away_asks_no_more():
    _pair, end, sender = sending("server")
    swallow(sender)
    end.leave("rate")
    assert pings(end, PROBE_AFTER_SECONDS) == 0
