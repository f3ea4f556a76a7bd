"""The receiver's driver in the world of `link`: it keeps chunks, hands runs to workers, and says what the core decides."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from delivery.protocol import events, messages
from delivery.protocol.connection import Connection
from delivery.protocol.events import Event
from delivery.protocol.receiver import Receiver

if TYPE_CHECKING:
    from .link import World


@dataclass(eq=False)
class Intake:
    """What a receiving driver keeps of one accepted transfer. `kept`: taken in and not stored."""

    end: ReceivingEnd
    receiver: Receiver
    lease: int = 0
    accepted: bool = False
    kept: dict[int, bytes] = field(default_factory=dict)


@dataclass(eq=False)
class Task:
    """A run of chunks on its way into the store."""

    intake: Intake
    lease: int
    start: int
    offset: int
    data: bytes


class ReceivingEnd:
    """The receiver's end of one connection."""

    def __init__(self, world: World, number: int, connection: Connection) -> None:
        self.world = world
        self.number = number
        self.connection = connection
        self.alive = True
        self.intakes: dict[int, Intake] = {}
        self.questions: deque[Receiver] = deque()

    def take(self, message: str | bytes) -> None:
        now = self.world.now
        if isinstance(message, str):
            happened = self.connection.receive_text(message, now)
        else:
            happened = self.connection.receive_bytes(message, now)
        self.react(happened)
        self.work()

    def react(self, happened: list[Event]) -> None:
        for event in happened:
            match event:
                case events.Offered(receiver):
                    self.questions.append(receiver)
                    self.intakes[receiver.handle] = Intake(self, receiver)
                case events.ChunkKept(receiver, chunk):
                    self.intakes[receiver.handle].kept[chunk.seq] = bytes(chunk.data)
                case events.Rewound(receiver):
                    self._rewound(self.intakes[receiver.handle])
                case events.ReceiverAborted(receiver):
                    self.intakes.pop(receiver.handle, None)

    def _rewound(self, intake: Intake) -> None:
        intake.kept = {seq: data for seq, data in intake.kept.items() if seq < intake.receiver.received}
        tasks = self.world.tasks
        tasks[:] = [t for t in tasks if t.intake is not intake or t.start < intake.receiver.received]

    def answer(self) -> None:
        """Answer the oldest open offer, as a server or a client with this store does."""
        receiver = self.questions.popleft()
        store, world = self.world.store, self.world
        if not receiver.live:
            return
        if store.sealed is not None:
            self.connection.done(receiver, size=len(store.content()), sha256=store.sealed)
            self.intakes.pop(receiver.handle)
        elif world.holder is not None and world.holder.end.number > self.number:
            self.connection.reject(receiver, "taken_over")
            self.intakes.pop(receiver.handle)
        else:
            self._accept(receiver)
        self.flush()

    def _accept(self, receiver: Receiver) -> None:
        world = self.world
        if world.holder is not None and world.holder.end.alive and world.holder.receiver.live:
            old = world.holder
            old.end.connection.abort(old.receiver, "taken_over", final=False)
            old.end.intakes.pop(old.receiver.handle, None)
            old.end.flush()
        intake = self.intakes[receiver.handle]
        intake.lease, intake.accepted = world.store.begin(), True
        world.holder = intake
        stored = len(world.store.content())
        self.react(
            self.connection.accept(receiver, stored=stored, terms=world.terms, now=world.now, size=world.store.size)
        )
        self.work()

    def work(self) -> None:
        """Hand out the runs that are due, and say what is to be said."""
        for intake in list(self.intakes.values()):
            self._work(intake)
        self.connection.queue_acks(self.world.now)
        self.flush()

    def _work(self, intake: Intake) -> None:
        receiver = intake.receiver
        while (run := receiver.next_run(self.world.now)) is not None:
            data = b"".join(intake.kept[seq] for seq in range(run.start, run.end) if seq in intake.kept)
            self.world.tasks.append(Task(intake, intake.lease, run.start, run.start * receiver.chunk_size, data))
        if receiver.finish is not None and receiver.size is not None:
            self.world.store.size = receiver.size
        if receiver.complete:
            digest = self.world.seal(receiver)
            self.connection.done(receiver, size=receiver.size or 0, sha256=digest)
            self.intakes.pop(receiver.handle, None)

    def stored(self, intake: Intake) -> None:
        """Hear that a run of this intake was stored."""
        receiver, position = intake.receiver, len(self.world.store.content())
        if receiver.live and self.alive:
            whole = receiver.chunks if receiver.size == position else position // receiver.chunk_size
            receiver.on_stored(min(whole or 0, receiver.received))
            intake.kept = {seq: data for seq, data in intake.kept.items() if seq >= receiver.stored}
            self.work()

    def flush(self) -> None:
        back = self.world.links[self.number].back
        while self.connection.outbox:
            back.append(messages.encode(self.connection.outbox.popleft()))
