"""A world for one transfer: a sender, a receiver, links that cut and delay, workers and a store.

Plays the drivers' part around the real protocol core, as plainly as can be: nothing here decides what the core ought to
decide. Whatever the protocol promises is checked as it happens; a promise that does not hold raises `Broken`.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field

from delivery.errors import MessagesLost, ProtocolViolation
from delivery.protocol import events, frames, messages
from delivery.protocol.connection import Connection, Limits, Side
from delivery.protocol.events import Event
from delivery.protocol.messages import DeliveryOffer, Hello, Offer, UploadOffer, Welcome
from delivery.protocol.receiver import Receiver, Terms
from delivery.protocol.sender import Sender

from .receiving import Intake, ReceivingEnd, Task
from .store import Broken, Source, Store, expect

TRANSFER = "0f8fad5b-d9cb-469f-a165-70867728950e"
PAYLOAD = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
MAX_MESSAGE = 65_548


@dataclass(eq=False)
class Link:
    """One connection: what is under way in both directions. `open` is how its sender sees it."""

    sending: Connection
    receiving: ReceivingEnd
    forth: deque[str | bytes] = field(default_factory=deque)
    back: deque[str] = field(default_factory=deque)
    open: bool = True
    tampered: bool = False


class World:
    """One transfer of `source` from one side to the other, over as many connections as it takes."""

    def __init__(self, source: Source, side: Side, store: Store, *, window: int, segment: int, early_data: int) -> None:
        self.source = source
        self.side = side  # the sender's
        self.store = store
        self.terms = Terms(window=window, segment_size=segment, max_size=len(source.data))
        self.early_data = early_data
        self.now = 0.0
        self.links: list[Link] = []
        self.tasks: list[Task] = []
        self.holder: Intake | None = None
        self.sender: Sender | None = None
        self.offered_before = False
        self.acked = 0  # bytes
        self.completed = False

    @property
    def link(self) -> Link | None:
        """The connection that the sender uses."""
        return self.links[-1] if self.links and self.links[-1].open else None

    # -- connecting ------------------------------------------------------------------------------------------------

    def connect(self, offered: int, announced: int) -> None:
        """Open a new connection, with chunks of at most `offered` bytes there and `announced` here, and offer."""
        self.cut()
        other = Side.SERVER if self.side is Side.CLIENT else Side.CLIENT
        sending = Connection(self.side, Limits(max_message=MAX_MESSAGE, chunk_size=offered), now=self.now)
        limits = Limits(max_message=MAX_MESSAGE, chunk_size=announced, early_data=self.early_data)
        receiving = Connection(other, limits, now=self.now)
        greet(*((sending, receiving) if self.side is Side.CLIENT else (receiving, sending)), now=self.now)
        self.links.append(Link(sending, ReceivingEnd(self, len(self.links), receiving)))
        self.offer(offered)

    def offer(self, chunk_size: int) -> None:
        """Offer the payload on the present connection."""
        link, source = self.link, self.source
        if link is None or self.completed:
            return
        kind, more = (UploadOffer, {}) if self.side is Side.CLIENT else (DeliveryOffer, {"payload": PAYLOAD})
        offer: Offer = kind(
            transfer=TRANSFER,
            handle=1,
            name="",
            size=len(source.data) if source.size_known else None,
            chunk_size=chunk_size,
            sha256=source.digest if source.digest_known else None,
            **more,
        )
        self.sender = link.sending.offer(offer, first=not self.offered_before, now=self.now)
        self.offered_before = True
        self._flush(link)

    def cut(self) -> None:
        """Lose the connection, as its sender sees it: what is under way to the receiver may still arrive, late."""
        if (link := self.link) is not None:
            link.open = False
        self.sender = None

    def crash_receiver(self) -> None:
        """Lose the receiver's process, with all that was not stored. Workers go on."""
        for link in self.links:
            link.receiving.alive = False
        self.cut()

    # -- messages --------------------------------------------------------------------------------------------------

    def send(self) -> bool:
        """Take one turn of sending; return whether there was anything to send."""
        link = self.link
        sender = link.sending.next_turn() if link else None
        if link is None or sender is None:
            return False
        span = sender.next_span()
        if span is not None:
            data = self.source.data[span.offset : span.offset + span.length]
            if len(data) < span.length and sender.size is None:
                sender.end(len(self.source.data))
            if data:
                link.forth.append(frames.encode(sender.handle, span.seq, data))
                sender.chunk_sent(span.seq, self.now)
        if sender.finish_due():
            late = self.source.digest_known or self.side is Side.SERVER
            link.sending.finish(sender, self.source.digest if late else None)
        self._flush(link)
        return True

    def deliver_forth(self, link: Link) -> bool:
        """Bring the receiver its next message; return whether there was one."""
        if not link.forth:
            return False
        message = link.forth.popleft()
        if link.receiving.alive:
            try:
                link.receiving.take(message)
            except ProtocolViolation as violation:
                expect(link.tampered, f"an honest sender was called a violator: {violation.reason}")
                link.receiving.alive = link.open = False
        return True

    def deliver_back(self, link: Link) -> bool:
        """Bring the sender its next message; return whether there was one."""
        if not link.back or not link.open:
            return False
        try:
            happened = link.sending.receive_text(link.back.popleft(), self.now)
        except MessagesLost:
            expect(link.tampered, "messages that are on their way were called lost")
            self.cut()
            return True
        except ProtocolViolation as violation:
            raise Broken(f"an honest receiver was called a violator: {violation.reason}") from violation
        for event in happened:
            self._react(event)
        self._flush(link)
        return True

    def _react(self, event: Event) -> None:
        match event:
            case events.Accepted(sender) | events.Acked(sender):
                acked = min(sender.acked_bytes, len(self.source.data))
                expect(acked >= self.acked, "an acked position fell")
                self.acked = acked
            case events.Completed(_, sha256):
                expect(sha256 == self.source.digest, "done with a digest that differs")
                expect(self.store.content() == self.source.data, "done, but not all of it is stored")
                self.completed = True
                self.sender = None
            case events.SenderAborted() | events.Rejected():
                self.sender = None

    def _flush(self, link: Link) -> None:
        while link.sending.outbox:
            link.forth.append(messages.encode(link.sending.outbox.popleft()))

    # -- workers ---------------------------------------------------------------------------------------------------

    def run_task(self, task: Task) -> None:
        """Store a run: now, or long after its connection has gone."""
        self.tasks.remove(task)
        if self.store.commit(task.lease, task.offset, task.data):
            task.intake.end.stored(task.intake)

    def lose_task(self, task: Task) -> None:
        """Lose a run before it is stored; a receiver that lives asks for it again."""
        self.tasks.remove(task)
        intake = task.intake
        if intake.end.alive and intake.receiver.live:
            intake.end.react(intake.end.connection.rewind(intake.receiver, task.start, "lost"))
            intake.end.flush()

    def seal(self, receiver: Receiver) -> str:
        """Check what is stored, and return its digest."""
        digest = hashlib.sha256(self.store.content()).hexdigest()
        for given in receiver.expected_digests():
            expect(given == digest, "everything is stored, but the digest differs")
        self.store.sealed = digest
        return digest

    # -- promises --------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Check what must hold at every moment."""
        content = self.store.content()
        expect(content == self.source.data[: len(content)], "wrong bytes are stored")
        expect(self.acked <= len(content), "bytes were acked that are not stored")
        for link in self.links:
            for intake in link.receiving.intakes.values():
                self._check_credit(intake)

    def _check_credit(self, intake: Intake) -> None:
        receiver = intake.receiver
        window = max(self.terms.window, receiver.chunk_size)
        kept = sum(map(len, intake.kept.values()))
        expect(kept <= max(window, self.early_data), "the receiver was made to keep more than its window")
        expect(receiver.stored <= receiver.received, "more is stored than came")

    def heal(self, chunk_size: int) -> None:
        """Let everything work from now on: the transfer must come to its end, on the present connection if there is one."""
        for _ in range(400):
            if self.completed:
                return
            if self.link is None or not self.link.receiving.alive:
                self.connect(chunk_size, chunk_size)
            elif self.sender is None:
                self.offer(chunk_size)
            self.now += 1.0
            self.round(1_000, storing=True)
            self.check()
        raise Broken("the transfer does not come to its end")

    def look_at_the_clock(self, link: Link) -> None:
        """Do what time alone asks of the sender: look for chunks that never arrived."""
        if link.open:
            link.sending.tick(self.now)
            self._flush(link)

    def round(self, turns: int, *, storing: bool) -> None:
        """Bring everything on the present connection one step on, with at most `turns` of sending."""
        link = self.link
        if link is None:
            return
        self.look_at_the_clock(link)
        while self.deliver_forth(link) or (turns and self.send()):
            turns = max(0, turns - 1)
        while link.receiving.alive and link.receiving.questions:
            link.receiving.answer()
        if link.receiving.alive:
            link.receiving.work()
        while storing and self.tasks:
            self.run_task(self.tasks[0])
        while self.deliver_back(link):
            pass


def greet(client: Connection, server: Connection, *, now: float) -> None:
    """Let two ends say hello and welcome, with what each one's limits say."""
    mine, theirs = client.limits, server.limits
    client.hello(
        Hello(client="c", max_message=mine.max_message, chunk_size=mine.chunk_size, early_data=mine.early_data)
    )
    server.receive_text(messages.encode(client.outbox.popleft()), now)
    server.welcome(
        Welcome(
            session="s",
            user="user:1",
            max_message=theirs.max_message,
            chunk_size=theirs.chunk_size,
            window=1,
            early_data=theirs.early_data,
            heartbeat=1e9,
        )
    )
    client.receive_text(messages.encode(server.outbox.popleft()), now)
