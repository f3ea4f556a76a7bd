"""Random exchanges of one Python `Connection` with a peer, written down so that another implementation can repeat them.

`record` plays one: a real Python peer at the other end, a network that swallows, damages and repeats, and a hostile peer
now and then. What it returns are the calls that were made to the connection, and what each of them brought.
"""

from __future__ import annotations

import json
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from delivery.errors import DeliveryError, ProtocolViolation
from delivery.protocol import events, frames, messages
from delivery.protocol.connection import Connection, Limits, Side
from delivery.protocol.messages import DeliveryOffer, Hello, UploadOffer, Welcome
from delivery.protocol.receiver import Receiver, Terms
from delivery.protocol.sender import Sender
from delivery.protocol.states import State

CHUNK = 4096
MAX_MESSAGE = 65_548
DIGEST = "ab" * 32
STEPS = 60
KINDS = {
    "Greeted": "greeted",
    "Welcomed": "welcomed",
    "Offered": "offered",
    "ChunkKept": "chunkKept",
    "Finished": "finished",
    "Rewound": "rewound",
    "ReceiverAborted": "receiverAborted",
    "Accepted": "accepted",
    "Acked": "acked",
    "Rejected": "rejected",
    "Completed": "completed",
    "SenderAborted": "senderAborted",
    "ServerGoingAway": "goingAway",
    "PeerSilent": "silent",
    "HelloMissing": "helloMissing",
}
HOSTILE = (
    '{"type":"ping","id":1}',
    '{"type":"pong","id":1}',
    '{"type":"pong","id":2}',
    '{"type":"gift"}',
    '{"type":"ack","handle":1,"seq":0,"received":0,"limit":0}',
    '{"type":"ack","handle":1,"seq":3,"received":3,"limit":99}',
    '{"type":"ack","handle":9,"seq":0,"received":0,"limit":1}',
    '{"type":"nack","handle":1,"seq":0,"code":"lost"}',
    '{"type":"nack","handle":2,"seq":1,"code":"checksum"}',
    '{"type":"finish","handle":1,"chunks":2,"size":8192,"sha256":null}',
    '{"type":"finish","handle":1,"chunks":99,"size":405504,"sha256":"' + DIGEST + '"}',
    '{"type":"going_away","reason":"rate","retry_after":1.5}',
    '{"type":"hello","client":"again","max_message":65548}',
    "[]",
)


@dataclass
class Recording:
    """What was done to a connection, and what came of it."""

    side: str
    limits: list[int]
    now: float
    heartbeat: float
    ops: list[dict[str, Any]] = field(default_factory=list)
    outcomes: list[dict[str, Any]] = field(default_factory=list)

    def line(self) -> str:
        members = ("side", "limits", "now", "heartbeat", "ops")
        return json.dumps({name: getattr(self, name) for name in members})


class Recorder:
    """A connection each of whose calls is written down."""

    def __init__(self, side: Side, rng: random.Random) -> None:
        early = rng.choice((0, CHUNK, 65_536))
        self.core = Connection(
            side, Limits(max_message=MAX_MESSAGE, chunk_size=CHUNK, early_data=early), now=0.0, heartbeat=20.0
        )
        self.recording = Recording(side.value, [MAX_MESSAGE, CHUNK, early], 0.0, 20.0)
        self.dead = False

    def do(self, name: str, **arguments: Any) -> list[Any]:
        """Call it; return the events. What was put into the outbox is in the last outcome."""
        self.recording.ops.append({"op": name, **arguments})
        try:
            result = getattr(self, f"_{name}")(**arguments)
        except DeliveryError as error:
            violation = isinstance(error, ProtocolViolation)
            said = [type(error).__name__, *([error.code, error.reason] if isinstance(error, ProtocolViolation) else [])]
            self.recording.outcomes.append({"error": said})
            self.dead = self.dead or violation
            return []
        happened = result if isinstance(result, list) and result and isinstance(result[0], events.Event) else []
        told = [KINDS[type(one).__name__] for one in happened] if happened else result
        self.recording.outcomes.append({"result": told, **self._seen()})
        return happened

    def _seen(self) -> dict[str, Any]:
        core = self.core
        outbox = [json.loads(messages.encode(message)) for message in core.outbox]
        core.outbox.clear()
        return {
            "outbox": outbox,
            "senders": [
                [s.handle, s.state.value, s.acked, s.received, s.next_seq, s.sent, s.limit, s.size]
                for s in core.senders.values()
            ],
            "receivers": [
                [r.handle, r.state.value, r.stored, r.received, r.handed, r.limit, r.size]
                for r in core.receivers.values()
            ],
            "wake_at": core.wake_at(),
        }

    # -- the calls ---------------------------------------------------------------------------------------------------

    def _hello(self, message: dict[str, Any]) -> None:
        self.core.hello(_decoded(message, messages.FROM_CLIENT))

    def _welcome(self, message: dict[str, Any]) -> None:
        self.core.welcome(_decoded(message, messages.FROM_SERVER))

    def _text(self, text: str, now: float) -> Any:
        return self.core.receive_text(text, now)

    def _bytes(self, now: float, **chunk: Any) -> Any:
        return self.core.receive_bytes(binary(**chunk), now)

    def _offer(self, message: dict[str, Any], first: bool, now: float) -> None:
        kinds = messages.FROM_CLIENT if self.core.side is Side.CLIENT else messages.FROM_SERVER
        self.core.offer(_decoded(message, kinds), first=first, now=now)

    def _turn(self, sha256: str | None, now: float) -> Any:
        sender = self.core.next_turn()
        if sender is None:
            return None
        if sender.finish_due():
            self.core.finish(sender, sha256)
            return [sender.handle, "finish"]
        span = sender.next_span()
        assert span is not None
        sender.chunk_sent(span.seq, now)
        self.core.sent(now)
        return [sender.handle, span.seq, span.offset, span.length]

    def _end(self, handle: int, size: int) -> None:
        self.core.senders[handle].end(size)

    def _accept(self, handle: int, stored: int, terms: list[int], now: float, hold: bool, size: int | None) -> Any:
        window, segment_size, max_size = terms
        granted = Terms(window=window, segment_size=segment_size, max_size=max_size)
        receiver = self.core.receivers[handle]
        return self.core.accept(receiver, stored=stored, terms=granted, now=now, hold=hold, size=size)

    def _reject(self, handle: int, code: str) -> None:
        self.core.reject(self.core.receivers[handle], code)

    def _run(self, handle: int, now: float, rest: bool) -> Any:
        receiver = self.core.receivers[handle]
        run = receiver.rest(now) if rest else receiver.next_run(now)
        return None if run is None else [run.start, run.end]

    def _stored(self, handle: int, seq: int) -> None:
        self.core.receivers[handle].on_stored(seq)

    def _rewind(self, handle: int, seq: int, code: str) -> Any:
        return self.core.rewind(self.core.receivers[handle], seq, code)

    def _done(self, handle: int, size: int, sha256: str) -> None:
        self.core.done(self.core.receivers[handle], size=size, sha256=sha256)

    def _abort(self, sends: bool, handle: int, code: str, final: bool) -> None:
        machine: Sender | Receiver = self.core.senders[handle] if sends else self.core.receivers[handle]
        self.core.abort(machine, code, final=final)

    def _hold(self, handle: int, held: bool) -> None:
        receiver = self.core.receivers[handle]
        receiver.hold() if held else receiver.release()

    def _resize(self, handle: int, window: int) -> None:
        self.core.receivers[handle].resize(window)

    def _acks(self, now: float) -> None:
        self.core.queue_acks(now)

    def _tick(self, now: float) -> Any:
        return self.core.tick(now)

    def _leave(self, reason: str, retry_after: float | None) -> None:
        self.core.leave(reason, retry_after)

    def _stalled(self, now: float) -> list[bool]:
        return [sender.stalled(now) for sender in self.core.senders.values()]


def _decoded(message: dict[str, Any], kinds: Any) -> Any:
    return messages.decode(json.dumps(message), kinds)


def binary(*, handle: int, seq: int, length: int, fill: int, intact: bool) -> bytes:
    """Return a chunk of `length` bytes that are all `fill`."""
    data = bytes([fill]) * length
    return frames.encode(handle, seq, data, frames.checksum(data) ^ (0 if intact else 1))


class _Play:
    """One exchange: `ours` is recorded, `theirs` is a recorder too, since it has the same calls."""

    def __init__(self, rng: random.Random, side: Side) -> None:
        other = Side.SERVER if side is Side.CLIENT else Side.CLIENT
        self.rng = rng
        self.now = 0.0
        self.ours, self.theirs = Recorder(side, rng), Recorder(other, rng)
        self.to_ours: deque[str | dict[str, Any]] = deque()
        self.to_theirs: deque[str | dict[str, Any]] = deque()
        self.transfers = 0
        self.bad = rng.random()  # how bad this exchange's network and peer are

    def run(self) -> Recording:
        client, server = (self.ours, self.theirs) if self.ours.core.side is Side.CLIENT else (self.theirs, self.ours)
        if self.rng.random() < 0.95:
            self._do(client, "hello", message=_wire(_hello(client)))
            self._pass_on(client, clean=True)
            self._do(server, "welcome", message=_wire(_welcome(server)))
            self._pass_on(server, clean=True)
        for _ in range(STEPS):
            if self.ours.dead:
                break
            self._step()
        return self.ours.recording

    def _do(self, one: Recorder, name: str, **arguments: Any) -> list[Any]:
        happened = one.do(name, **arguments)
        line = self.to_theirs if one is self.ours else self.to_ours
        for message in one.recording.outcomes[-1].get("outbox", ()):
            line.append(json.dumps(message))
        if name == "turn" and isinstance(sent := one.recording.outcomes[-1].get("result"), list) and len(sent) == 4:
            handle, seq, _, length = sent
            line.append({"handle": handle, "seq": seq, "length": length, "fill": seq % 251, "intact": True})
        return happened

    def _step(self) -> None:
        self.now = round(self.now + self.rng.choice((0.0, 0.001, 0.1, 0.6, 2.1, 5.5, 9.0)), 3)
        one = self.rng.choice((self.ours, self.theirs))
        if one.dead:
            one = self.ours
        moves = (self._receive, self._receive, self._receive, self._send, self._send, self._answer, self._store)
        self.rng.choice((*moves, self._offer, self._time, self._odd))(one)

    def _receive(self, one: Recorder) -> None:
        self._pass_on(self.theirs if one is self.ours else self.ours, clean=False)

    def _pass_on(self, sender: Recorder, *, clean: bool) -> None:
        """Let what `sender` said arrive; not all of it does, and not all of it undamaged."""
        receiver, line = (self.theirs, self.to_theirs) if sender is self.ours else (self.ours, self.to_ours)
        for _ in range(1 if clean else self.rng.randint(1, 6)):
            if not line or receiver.dead:
                return
            message = line.popleft()
            if not clean and self.rng.random() < 0.02 * self.bad:
                continue  # swallowed
            if isinstance(message, str):
                self._do(receiver, "text", text=message, now=self.now)
            else:
                damaged = not clean and self.rng.random() < 0.06 * self.bad
                self._do(receiver, "bytes", now=self.now, **{**message, "intact": not damaged})
                if self.rng.random() < 0.03 * self.bad:
                    self._do(receiver, "bytes", now=self.now, **message)

    def _send(self, one: Recorder) -> None:
        for _ in range(self.rng.randint(1, 5)):
            for sender in list(one.core.senders.values()):
                if sender.size is None and sender.sent > 2 and self.rng.random() < 0.3:
                    size = sender.sent * sender.chunk_size - self.rng.choice((0, 0, 1, 5000))
                    self._do(one, "end", handle=sender.handle, size=size)
            self._do(one, "turn", sha256=self.rng.choice((None, DIGEST)), now=self.now)

    def _offer(self, one: Recorder) -> None:
        self.transfers += 1
        size = self.rng.choice((0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 10 * CHUNK + 77, 40 * CHUNK, None))
        offer: dict[str, Any] = {
            "transfer": str(UUID(int=self.rng.getrandbits(32))),
            "handle": 1,
            "name": f"{self.transfers}.bin",
            "size": size,
            "chunk_size": self.rng.choice((CHUNK, 2 * CHUNK, 65_536)),
            "sha256": self.rng.choice((None, None, DIGEST)),
        }
        kind: Any = UploadOffer if one.core.side is Side.CLIENT else DeliveryOffer
        extra = {} if kind is UploadOffer else {"payload": str(UUID(int=self.transfers))}
        self._do(one, "offer", message=_wire(kind(**offer, **extra)), first=self.rng.random() < 0.5, now=self.now)

    def _answer(self, one: Recorder) -> None:
        for receiver in list(one.core.receivers.values()):
            if receiver.state is State.OFFERED and self.rng.random() < 0.7:
                self._answer_offer(one, receiver)

    def _answer_offer(self, one: Recorder, receiver: Receiver) -> None:
        handle, rng = receiver.handle, self.rng
        if rng.random() < 0.1:
            self._do(one, "reject", handle=handle, code=rng.choice(("busy", "declined", "quota", "nonsense")))
        elif rng.random() < 0.1:
            self._do(one, "done", handle=handle, size=receiver.size or 0, sha256=rng.choice((DIGEST, "cd" * 32)))
        else:
            stored = rng.choice((0, 0, 0, CHUNK, 3 * CHUNK, receiver.size or 0, 5000))
            terms = [
                rng.choice((CHUNK, 8 * CHUNK, 64 * CHUNK)),
                rng.choice((CHUNK, 4 * CHUNK)),
                rng.choice((10**9, 20_000)),
            ]
            hold, size = rng.random() < 0.1, rng.choice((None, None, receiver.size))
            self._do(one, "accept", handle=handle, stored=stored, terms=terms, now=self.now, hold=hold, size=size)

    def _store(self, one: Recorder) -> None:
        for receiver in list(one.core.receivers.values()):
            handle = receiver.handle
            self._do(one, "run", handle=handle, now=self.now, rest=self.rng.random() < 0.2)
            if self.rng.random() < 0.8:
                seq = self.rng.randint(receiver.stored, max(receiver.stored, receiver.handed))
                self._do(one, "stored", handle=handle, seq=seq + (self.rng.random() < 0.01 * self.bad) * 1000)
            if receiver.complete and self.rng.random() < 0.8:
                self._do(one, "done", handle=handle, size=receiver.size or 0, sha256=DIGEST)
        self._do(one, "acks", now=self.now)

    def _time(self, one: Recorder) -> None:
        self._do(one, self.rng.choice(("tick", "stalled", "acks")), now=self.now)

    def _odd(self, one: Recorder) -> None:
        """Something rarer: a hostile message, an abort, a nack, a pause, going away."""
        rng, core = self.rng, one.core
        choice = rng.random()
        if choice < 0.3 * self.bad:
            self._do(one, "text", text=rng.choice(HOSTILE), now=self.now)
        elif choice < 0.4 * self.bad:
            chunk = {"handle": rng.randint(1, 4), "seq": rng.randint(0, 9), "length": rng.choice((1, CHUNK))}
            self._do(one, "bytes", now=self.now, **chunk, fill=7, intact=True)
        elif core.receivers and choice < 0.8:
            self._odd_receiver(one, rng.choice(list(core.receivers.values())))
        elif core.senders and choice < 0.9:
            code, final = rng.choice((("cancelled", True), ("paused", False), ("stalled", True)))
            self._do(one, "abort", sends=True, handle=rng.choice(list(core.senders)), code=code, final=final)
        elif choice > 0.97:
            self._do(one, "leave", reason=rng.choice(("server_draining", "rate", "lunch")), retry_after=0.25)

    def _odd_receiver(self, one: Recorder, receiver: Receiver) -> None:
        rng, handle = self.rng, receiver.handle
        choice = rng.random()
        if choice < 0.4:
            seq = rng.randint(receiver.stored, max(receiver.stored, receiver.received))
            self._do(one, "rewind", handle=handle, seq=seq, code=rng.choice(("lost", "lost", "checksum")))
        elif choice < 0.6:
            self._do(one, "hold", handle=handle, held=rng.random() < 0.5)
        elif choice < 0.8:
            self._do(one, "resize", handle=handle, window=rng.choice((1, CHUNK, 99 * CHUNK)))
        else:
            code, final = rng.choice((("cancelled", True), ("busy", False), ("digest", True)))
            self._do(one, "abort", sends=False, handle=handle, code=code, final=final)


def _hello(one: Recorder) -> Hello:
    limits = one.core.limits
    return Hello(client="c", max_message=MAX_MESSAGE, chunk_size=CHUNK, early_data=limits.early_data, receive=True)


def _welcome(one: Recorder) -> Welcome:
    early = one.core.limits.early_data
    return Welcome(
        session="s",
        user="user:1",
        max_message=MAX_MESSAGE,
        chunk_size=CHUNK,
        window=2**20,
        early_data=early,
        heartbeat=7.5,
    )


def _wire(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(messages.encode(message))
    return found


def record(seed: int, side: Side) -> Recording:
    """Play the exchange of this seed with a connection of `side`; return what was done and what came of it."""
    return _Play(random.Random(f"{seed} {side.value}"), side).run()
