"""The whole socket: greeting, what may come when, heartbeats, going away."""

from __future__ import annotations

import pytest

from delivery.errors import ProtocolViolation, UsageError
from delivery.protocol import events, frames, messages
from delivery.protocol.connection import HELLO_SECONDS, MOST_QUEUED_PONGS, Connection, Limits, Side
from delivery.protocol.messages import Ack, GoingAway, Ping, Pong

from .messages_of import CHUNK, TRANSFER
from .pair import CLIENT, SERVER, Pair, hello, welcome

PING = '{"type":"ping","id":3}'


def violation(receive, message) -> ProtocolViolation:
    with pytest.raises(ProtocolViolation) as caught:
        receive(message, 0.0)
    return caught.value


# -- greeting


def test_hello_and_welcome_open_the_connection():
    pair = Pair(greeted=False)
    pair.client.hello(hello())
    assert pair.pump(pair.client) == [events.Greeted(hello())]
    pair.server.welcome(welcome())
    assert pair.pump(pair.server) == [events.Welcomed(welcome())]
    assert pair.client.welcomed
    assert pair.server.welcomed
    assert pair.client.peer == SERVER
    assert pair.server.peer == CLIENT
    assert pair.client.heartbeat == pair.server.heartbeat == 10.0


def test_chunks_that_do_not_fit_into_our_own_messages_are_misuse():
    with pytest.raises(UsageError, match="do not fit"):
        Connection(Side.CLIENT, Limits(max_message=65_548, chunk_size=131_072), now=0.0)


def test_hello_is_said_once_by_the_client():
    pair = Pair(greeted=False)
    with pytest.raises(UsageError, match="hello"):
        pair.server.hello(hello())
    pair.client.hello(hello())
    with pytest.raises(UsageError, match="hello"):
        pair.client.hello(hello())


def test_welcome_is_said_once_by_the_server_after_hello():
    pair = Pair(greeted=False)
    with pytest.raises(UsageError, match="welcome"):
        pair.server.welcome(welcome())
    with pytest.raises(UsageError, match="welcome"):
        pair.client.welcome(welcome())
    with pytest.raises(UsageError, match="welcome"):
        Pair().server.welcome(welcome())


def test_before_hello_a_text_is_a_violation_and_a_binary_message_1003():
    server = Pair(greeted=False).server
    assert violation(server.receive_text, PING).code == 4400
    assert violation(server.receive_bytes, bytes(20)).code == 1003


def test_between_hello_and_welcome_a_client_says_nothing():
    pair = Pair(greeted=False)
    pair.client.hello(hello())
    pair.pump(pair.client)
    assert violation(pair.server.receive_text, PING).reason == "message before welcome"
    assert violation(pair.server.receive_text, messages.encode(hello())).code == 4400
    refused = violation(pair.server.receive_bytes, bytes(20))
    assert (refused.code, refused.reason) == (4400, "chunk before welcome")


def test_a_server_says_welcome_first():
    client = Pair(greeted=False).client
    assert violation(client.receive_text, PING).reason == "expected welcome first"
    assert violation(client.receive_bytes, bytes(20)).code == 4400


def test_a_server_may_go_away_before_it_says_welcome():
    client = Pair(greeted=False).client
    (event,) = client.receive_text('{"type":"going_away","reason":"rate","retry_after":1}', 0.0)
    assert isinstance(event, events.ServerGoingAway)


def test_nobody_greets_twice():
    pair = Pair()
    assert violation(pair.server.receive_text, messages.encode(hello())).reason == "hello twice"
    assert violation(pair.client.receive_text, messages.encode(welcome())).reason == "welcome twice"


def test_a_hello_whose_chunks_do_not_fit_is_a_violation():
    pair = Pair(greeted=False)
    text = '{"type":"hello","client":"c","max_message":65548,"chunk_size":131072}'
    assert violation(pair.server.receive_text, text).code == 4400


def test_a_missing_hello_is_noticed():
    server = Pair(greeted=False).server
    assert server.wake_at() == HELLO_SECONDS
    assert server.tick(HELLO_SECONDS - 0.1) == []
    assert server.tick(HELLO_SECONDS) == [events.HelloMissing()]
    assert Pair(greeted=False).client.tick(HELLO_SECONDS) == []


def test_a_login_that_takes_long_is_no_missing_hello():
    pair = Pair(greeted=False)
    pair.client.hello(hello())
    pair.pump(pair.client)
    assert pair.server.tick(HELLO_SECONDS) == []
    assert pair.server.wake_at() > HELLO_SECONDS


# -- how large a message may be


def test_a_message_over_our_limit_is_1009():
    pair = Pair()
    limit = SERVER.max_message
    assert violation(pair.server.receive_bytes, bytes(limit + 1)).code == 1009
    assert violation(pair.server.receive_bytes, bytes(limit)).code == 4400
    assert violation(pair.server.receive_text, "x" * (limit + 1)).code == 1009
    assert violation(pair.server.receive_text, "x" * limit).code == 4400


def test_text_is_measured_in_bytes():
    pair = Pair()
    limit = SERVER.max_message
    assert violation(pair.server.receive_text, "é" * (limit // 2 + 1)).code == 1009
    assert violation(pair.server.receive_text, "é" * (limit // 2)).code == 4400
    assert violation(pair.server.receive_text, "\ud800" * (limit // 3 + 1)).code == 1009


# -- heartbeats


def test_a_ping_is_answered():
    pair = Pair()
    pair.server.outbox.append(Ping(id=3))
    pair.pump(pair.server)
    assert list(pair.client.outbox) == [Pong(id=3)]
    assert pair.pump(pair.client) == []


def test_a_flood_of_pings_is_answered_up_to_a_bound():
    server = Pair().server
    for _ in range(2 * MOST_QUEUED_PONGS):
        server.receive_text(PING, 0.0)
    assert len(server.outbox) == MOST_QUEUED_PONGS


def test_either_side_pings_after_a_heartbeat_in_which_it_said_nothing():
    pair = Pair()
    assert pair.server.wake_at() == pair.client.wake_at() == 10.0
    assert pair.server.tick(10.0) == pair.client.tick(10.0) == []
    assert list(pair.server.outbox) == list(pair.client.outbox) == [Ping(id=1)]


def test_only_the_server_pings_because_it_hears_nothing():
    pair = Pair()
    pair.server.sent(9.0)
    pair.client.sent(9.0)
    pair.server.tick(10.0)
    pair.client.tick(10.0)
    assert list(pair.server.outbox) == [Ping(id=1)]
    assert not pair.client.outbox


def test_a_client_does_not_ping_before_the_welcome():
    client = Pair(greeted=False).client
    client.tick(20.0)
    assert not client.outbox


def test_a_pong_is_said_behind_the_acks_of_what_has_come():
    pair = Pair()
    sender, _ = pair.accepted(pair.client)
    pair.chunk(sender, pair.client, bytes(CHUNK))
    pair.server.receive_text(PING, 0.0)
    ack, pong = pair.server.outbox
    assert isinstance(ack, Ack)
    assert ack.received == 1
    assert pong == Pong(id=3)


@pytest.mark.parametrize("side", ["client", "server"])
def test_bytes_of_an_incomplete_message_are_signs_of_life(side):
    end = getattr(Pair(), side)
    end.heard(24.0)
    assert end.tick(48.9) == []
    end.heard(20.0)  # older news
    assert end.tick(48.9) == []
    assert end.tick(49.0) == [events.PeerSilent()]


def test_before_the_welcome_a_server_takes_65536_bytes_and_no_more():
    limits = Limits(max_message=200_000, chunk_size=65_536)
    assert violation(Connection(Side.SERVER, limits, now=0.0).receive_text, " " * 65_537).code == 1009
    assert violation(Connection(Side.SERVER, limits, now=0.0).receive_bytes, bytes(65_537)).code == 1009
    greeted = Connection(Side.SERVER, limits, now=0.0)
    greeted.receive_text(messages.encode(hello()), 0.0)
    assert violation(greeted.receive_bytes, bytes(65_537)).code == 1009
    assert violation(Connection(Side.SERVER, limits, now=0.0).receive_text, " " * 65_536).code == 4400


def test_what_was_sent_and_heard_puts_a_ping_off():
    server = Pair().server
    server.sent(5.0)
    server.receive_text(PING, 5.0)
    server.outbox.clear()
    server.tick(14.9)
    assert not server.outbox
    server.tick(15.0)
    assert server.outbox


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_peer_that_says_nothing_at_all_is_dropped(side):
    end = getattr(Pair(), side)
    assert end.tick(24.9) == []
    assert end.tick(25.0) == [events.PeerSilent()]


def test_chunks_for_what_is_no_longer_live_are_dropped():
    pair = Pair()
    sender, receiver = pair.accepted(pair.client)
    pair.server.abort(receiver, "cancelled", final=True)
    assert pair.chunk(sender, pair.client, bytes(CHUNK)) == []


def test_chunks_count_as_signs_of_life():
    pair = Pair()
    pair.accepted(pair.client)
    pair.server.receive_bytes(frames.encode(1, 0, bytes(CHUNK)), 20.0)
    assert pair.server.tick(44.9) == []


def test_it_wakes_for_what_its_receivers_wait_for():
    pair = Pair()
    sender, _ = pair.accepted(pair.client)
    pair.chunk(sender, pair.client, bytes(CHUNK))
    assert pair.server.wake_at() == 0.5


# -- going away


def test_the_server_says_why_it_goes_and_discards_what_still_comes():
    pair = Pair()
    sender, receiver = pair.accepted(pair.client)
    pair.server.leave("worker_draining", 0.8)
    assert list(pair.server.outbox) == [GoingAway(reason="worker_draining", retry_after=0.8)]
    assert pair.chunk(sender, pair.client, bytes(CHUNK)) == []
    assert pair.server.receive_text("no JSON at all", 0.0) == []
    assert receiver.received == 0
    pair.server.outbox.clear()
    pair.server.tick(10.0)
    assert not pair.server.outbox


@pytest.mark.parametrize(("side", "reason"), [("client", "rate"), ("server", "lunch")])
def test_only_the_server_goes_away_for_a_reason_of_the_protocol(side, reason):
    with pytest.raises(UsageError, match="cannot go away"):
        getattr(Pair(), side).leave(reason)


def test_senders_stop_at_going_away():
    pair = Pair()
    sender, _ = pair.accepted(pair.client)
    assert pair.client.next_turn() is sender
    pair.server.leave("rate")
    (event,) = pair.pump(pair.server)
    assert isinstance(event, events.ServerGoingAway)
    assert pair.client.next_turn() is None
    assert not pair.client.can_offer()


def test_a_client_still_hears_the_last_acks():
    pair = Pair()
    sender, receiver = pair.accepted(pair.client)
    pair.chunk(sender, pair.client, bytes(CHUNK))
    receiver.on_stored(1)
    pair.server.queue_acks(0.0)
    pair.server.leave("server_draining")
    pair.pump(pair.server)
    assert sender.acked == 1


def test_types_of_the_other_side_are_unknown():
    pair = Pair()
    assert violation(pair.server.receive_text, '{"type":"going_away","reason":"rate"}').code == 4400
    assert violation(pair.client.receive_text, f'{{"type":"done","handle":1,"transfer":"{TRANSFER}"}}').code == 4400
