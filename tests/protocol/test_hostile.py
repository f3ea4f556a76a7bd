"""A peer that says anything at all, to either side: only `ProtocolViolation` may come of it, and nothing may grow.

Most of what it says is nearly right, since that gets further than noise.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from delivery.errors import MessagesLost, ProtocolViolation
from delivery.protocol import events, frames, messages
from delivery.protocol.connection import MAX_UNANSWERED_OFFERS, MOST_QUEUED_PONGS, Connection, Limits, Side
from delivery.protocol.messages import Accept, Ack, DeliveryOffer, Done, UploadOffer
from delivery.protocol.receiver import Receiver, Terms
from delivery.protocol.states import State

from .link import greet
from .store import expect

pytestmark = pytest.mark.no_cover  # what it reaches is up to chance

BLOCK = 4096
WINDOW = 4 * BLOCK
EARLY = 2 * BLOCK
TERMS = Terms(window=WINDOW, segment_size=2 * BLOCK, max_size=10 * BLOCK)
TRANSFERS = ["0f8fad5b-d9cb-469f-a165-70867728950e", "7c9e6679-7425-40de-944b-e07fc1f90ae7"]
DIGEST = "ab" * 32

small = st.integers(0, 12)
members = {
    "type": st.sampled_from(sorted({*messages.FROM_CLIENT, *messages.FROM_SERVER})),
    "transfer": st.sampled_from(TRANSFERS),
    "payload": st.sampled_from(TRANSFERS),
    "handle": st.integers(0, 8),
    "name": st.just("n"),
    "size": st.one_of(st.none(), st.sampled_from([0, 1, BLOCK, 3 * BLOCK, 3 * BLOCK + 1, 2**53 - 1])),
    "chunk_size": st.sampled_from([BLOCK, 2 * BLOCK, 4_194_304]),
    "sha256": st.sampled_from([None, DIGEST, "cd" * 32]),
    "seq": small,
    "received": small,
    "limit": small,
    "chunks": small,
    "code": st.sampled_from(["lost", "checksum", "busy", "cancelled", "nonsense"]),
    "final": st.booleans(),
    "id": small,
    "reason": st.just("rate"),
}
nearly_right = st.fixed_dictionaries(members)
oddities = st.one_of(st.none(), st.booleans(), st.integers(-1, 2**53), st.floats(), st.text(max_size=5), st.just([]))
broken = st.tuples(nearly_right, st.sampled_from(sorted(members)), oddities).map(lambda t: {**t[0], t[1]: t[2]})
noise = st.recursive(
    oddities, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner), max_leaves=9
)
texts = st.one_of(nearly_right.map(json.dumps), broken.map(json.dumps), noise.map(json.dumps), st.text(max_size=50))


class Hostile(RuleBasedStateMachine):
    """Our end of a connection and its driver; the peer is played by Hypothesis."""

    @initialize(side=st.sampled_from(Side))
    def connect(self, side):
        self.side = side
        self.now = 0.0
        limits = Limits(max_message=65_548, chunk_size=2 * BLOCK, early_data=EARLY)
        self.core = Connection(side, limits, now=0.0)
        other = Connection(Side.SERVER if side is Side.CLIENT else Side.CLIENT, limits, now=0.0)
        greet(*((self.core, other) if side is Side.CLIENT else (other, self.core)), now=0.0)
        self.kept: dict[Receiver, dict[int, int]] = {}  # the lengths of chunks that are not stored
        self.stored: dict[int, int] = {}  # by handle, as far as the driver stored
        self.handed: dict[Receiver, int] = {}

    # -- the peer --------------------------------------------------------------------------------------------------

    def hear(self, receive, message):
        try:
            happened = receive(message, self.now)
        except ProtocolViolation as violation:
            expect(violation.code in (1009, 4400, 4429), "a close code that no violation has")
            expect((violation.code == 1009) >= isinstance(violation, MessagesLost), "a loss that is not 1009")
            expect(0 < len(violation.reason.encode()) <= 123, "a reason that does not fit into a close frame")
            self.connect(self.side)
        else:
            self.react(happened)

    @rule(text=texts)
    def says(self, text):
        self.hear(self.core.receive_text, text)

    @rule(data=st.binary(max_size=40))
    def throws_bytes(self, data):
        self.hear(self.core.receive_bytes, data)

    @rule(ahead=st.integers(1, 3), size=members["size"], chunk_size=members["chunk_size"], sha256=members["sha256"])
    def offers(self, ahead, size, chunk_size, sha256):
        handle = self.core._incoming.highest + ahead
        text = {"transfer": TRANSFERS[0], "handle": handle, "name": "", "size": size, "chunk_size": chunk_size}
        extra = {"payload": TRANSFERS[1], "sha256": sha256}
        self.hear(self.core.receive_text, json.dumps({"type": "offer", **text, **extra}))

    @precondition(lambda self: self.core.receivers)
    @rule(
        pick=small,
        step=st.sampled_from([0, 0, 0, 0, -1, 1]),
        length=st.sampled_from([None, None, None, 1, BLOCK, 2 * BLOCK, 2 * BLOCK + 1]),
        wrong=st.sampled_from([False, False, False, True]),
    )
    def sends_a_chunk(self, pick, step, length, wrong):
        receiver = list(self.core.receivers.values())[pick % len(self.core.receivers)]
        seq = max(0, receiver.received + step)
        left = receiver.chunk_size if receiver.size is None else receiver.size - seq * receiver.chunk_size
        data = bytes(max(1, min(receiver.chunk_size, left)) if length is None else length)
        message = frames.encode(receiver.handle, seq, data, 1 if wrong else None)
        self.hear(self.core.receive_bytes, message)

    @precondition(lambda self: self.core.receivers)
    @rule(pick=small, sha256=members["sha256"])
    def finishes(self, pick, sha256):
        receiver = list(self.core.receivers.values())[pick % len(self.core.receivers)]
        size = receiver.received * receiver.chunk_size if receiver.size is None else receiver.size
        text = {"handle": receiver.handle, "chunks": receiver.received, "size": size, "sha256": sha256}
        self.hear(self.core.receive_text, json.dumps({"type": "finish", **text}))

    @precondition(lambda self: self.core.receivers)
    @rule(pick=small, ahead=st.integers(1, 3))
    def claims_more_chunks_than_it_sent(self, pick, ahead):
        receiver = list(self.core.receivers.values())[pick % len(self.core.receivers)]
        chunks = receiver.received + ahead
        text = {"handle": receiver.handle, "chunks": chunks, "size": chunks * receiver.chunk_size, "sha256": None}
        self.hear(self.core.receive_text, json.dumps({"type": "finish", **text}))

    @rule(number=small)
    def answers_pings_without_acks(self, number):
        self.hear(self.core.receive_text, json.dumps({"type": "pong", "id": number}))

    @rule(count=st.integers(1, 400))
    def floods_with_pings(self, count):
        for _ in range(count):
            self.hear(self.core.receive_text, '{"type":"ping","id":1}')

    # -- our driver ------------------------------------------------------------------------------------------------

    def react(self, happened):
        for event in happened:
            match event:
                case events.Offered(receiver):
                    self.kept[receiver] = {}
                case events.ChunkKept(receiver, chunk):
                    assert chunk.intact()
                    self.kept[receiver][chunk.seq] = len(chunk.data)
                case events.Rewound(receiver):
                    self.kept[receiver] = {s: n for s, n in self.kept[receiver].items() if s < receiver.received}
                    self.handed[receiver] = min(self.handed.get(receiver, 0), receiver.received)
                case events.ReceiverAborted(receiver):
                    self.kept.pop(receiver, None)

    @precondition(lambda self: any(r.state is State.OFFERED for r in self.core.receivers.values()))
    @rule(how=st.sampled_from(["accept", "accept", "accept", "hold", "reject", "done"]))
    def answers(self, how):
        receiver = next(r for r in self.core.receivers.values() if r.state is State.OFFERED)
        if how == "reject":
            self.core.reject(receiver, "busy", retry_after=1.0)
        elif how == "done":
            size, digest = receiver.size or 0, receiver.sha256 or DIGEST
            self.core.done(receiver, size=size, sha256=digest)
            self.stored[receiver.handle] = 2**32
        elif receiver.size is not None and receiver.size > TERMS.max_size:
            self.core.reject(receiver, "too_large", max_size=TERMS.max_size)
        else:
            self.react(self.core.accept(receiver, stored=0, terms=TERMS, now=self.now, hold=how == "hold"))
        if not receiver.live:
            self.kept.pop(receiver, None)

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0]), storing=st.booleans())
    def works(self, seconds, storing):
        self.now += seconds
        for receiver in list(self.core.receivers.values()):
            while (run := receiver.next_run(self.now)) is not None:
                assert all(seq in self.kept[receiver] for seq in range(run.start, run.end))
                self.handed[receiver] = run.end
            if storing and receiver.state is not State.OFFERED:
                self.store(receiver)
        self.core.queue_acks(self.now)
        self.core.tick(self.now)

    def store(self, receiver):
        end = min(self.handed.get(receiver, 0), receiver.received)
        self.stored[receiver.handle] = max(end, self.stored.get(receiver.handle, 0))
        receiver.on_stored(end)
        self.kept[receiver] = {s: n for s, n in self.kept[receiver].items() if s >= end}
        if receiver.complete:
            digests = receiver.expected_digests() or {DIGEST}
            if len(digests) > 1:
                self.core.abort(receiver, "digest", final=True)
            else:
                self.core.done(receiver, size=receiver.size, sha256=digests.pop())
            del self.kept[receiver]

    @precondition(lambda self: self.core.receivers)
    @rule(pick=small)
    def loses_what_it_kept(self, pick):
        receiver = list(self.core.receivers.values())[pick % len(self.core.receivers)]
        if receiver.state is not State.OFFERED:
            self.react(self.core.rewind(receiver, receiver.stored, "lost"))

    @precondition(lambda self: self.core.can_offer())
    @rule(size=st.sampled_from([None, 0, 1, BLOCK, 5 * BLOCK]), first=st.booleans())
    def offers_itself(self, size, first):
        kind, more = (UploadOffer, {}) if self.side is Side.CLIENT else (DeliveryOffer, {"payload": TRANSFERS[1]})
        offer = kind(transfer=TRANSFERS[0], handle=1, name="", size=size, chunk_size=2 * BLOCK, **more)
        self.core.offer(offer, first=first, now=self.now)

    @rule(turns=st.integers(1, 8))
    def sends(self, turns):
        for _ in range(turns):
            sender = self.core.next_turn()
            if sender is None:
                return
            if (span := sender.next_span()) is not None:
                assert 0 < span.length <= sender.chunk_size <= self.core.peer.chunk_size
                if span.offset >= 8 * BLOCK and sender.size is None:
                    sender.end(span.offset)
                else:
                    sender.chunk_sent(span.seq, self.now)
            elif sender.finish_due():
                self.core.finish(sender, DIGEST)

    @rule()
    def the_outbox_is_sent(self):
        ours = messages.FROM_CLIENT if self.side is Side.CLIENT else messages.FROM_SERVER
        for message in self.core.outbox:
            messages.check(message, ours)
        self.core.outbox.clear()

    # -- what always holds -----------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_acked_that_is_not_stored(self):
        for message in self.core.outbox if hasattr(self, "core") else ():
            if isinstance(message, Ack | Accept):
                assert message.seq <= self.stored.get(message.handle, 0)
            elif isinstance(message, Done):
                assert message.handle in self.stored

    @invariant()
    def memory_is_bounded(self):
        if not hasattr(self, "core"):
            return
        live = self.core.receivers.values()
        assert sum(receiver.state is State.OFFERED for receiver in live) <= MAX_UNANSWERED_OFFERS
        assert set(self.kept) == set(live)
        for receiver, kept in self.kept.items():
            assert sum(kept.values()) <= (EARLY if receiver.state is State.OFFERED else WINDOW)
            assert len(receiver._nacks) <= WINDOW // BLOCK
        pongs = sum(isinstance(message, messages.Pong) for message in self.core.outbox)
        assert pongs <= MOST_QUEUED_PONGS
        assert len(self.core._turns._order) == len(self.core.senders)

    @invariant()
    def nothing_is_sent_without_credit(self):
        for sender in self.core.senders.values() if hasattr(self, "core") else ():
            assert sender.acked <= sender.sent
            assert sender.next_seq <= sender.sent
            assert len(sender._sent_at) <= max(0, sender.next_seq - sender.received)


def test_a_hostile_peer_gets_nothing_but_a_close_code():
    run_state_machine_as_test(
        Hostile,
        settings=settings(
            max_examples=150,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
