"""The network between a client and the server: cut, swallowed, sliced, slow, short-lived."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

from faults import loss
from faults.cells import cell
from faults.people import every
from faults.trial import KIB, MIB, Trial
from rig.proxy import DOWN, UP, CutAtFrame, Direction

RATE = 40e6
BLOCK = 50_000


@cell("network: cut", quick=True)
async def cut(trial: Trial) -> None:
    await trial.begin()
    await trial.moment()
    trial.broken()
    for party in trial.parties:
        if trial.random.random() < 0.7:
            party.network.cut()
    trial.healed()


@cell("network: cut at a frame's end -1, 0, +1 byte", quick=True)
async def cut_at_boundary(trial: Trial) -> None:
    await trial.begin()
    await trial.moment()
    trial.broken()
    for party in trial.parties:
        party.network.cut_at(_any_cut(trial, trial.random.randrange(12)))
    trial.healed()


@cell("network: cut at every frame of the first 40", deadline=120)
async def cut_often(trial: Trial) -> None:
    """Each connection is cut a few frames later than the last one."""
    await trial.begin(big=24 * MIB)
    for number in range(10):
        await asyncio.sleep(0.25)
        for party in trial.parties:
            party.network.cut_at(_any_cut(trial, number))
    trial.healed()


@cell("network: cut while a stream is produced")
async def cut_stream(trial: Trial) -> None:
    """Six cuts, each while the producer is asked for a block: the next connection waits for the same one."""
    people = await trial.people(2)
    sender = await trial.party("sender", people[0], rate=RATE)
    recipient = await trial.party("recipient1", people[1], rate=RATE, receive=True)
    await asyncio.wait_for(asyncio.gather(sender.ready(), recipient.ready()), 20)
    data = trial.data("stream.bin", trial.random.choice((2_400_000, 6 * MIB + 1, 12 * MIB)))
    recipient.expect("stream.bin", len(data))
    recipient.receive()
    stream = _Stream(data, cuts=sorted(trial.random.sample(range(1, len(data) // BLOCK), 6)))
    kind = trial.turn(("iterator", "generator", "async generator"))
    trial.note(f"{kind} of {len(data)} bytes")
    source = {
        "iterator": lambda: stream,
        "generator": lambda: (block for block in stream),
        "async generator": stream.later,
    }
    sender.send(data, [people[1].address], "stream.bin", source=source[kind]())
    for number in range(6):
        await asyncio.to_thread(stream.asked.acquire, timeout=30)
        if not number:
            trial.broken()
        seen = sender.client.statistics.connections
        sender.network.cut()
        await _until(lambda seen=seen: sender.client.statistics.connections > seen)
        stream.goes_on.release()
    trial.healed()


class _Stream:
    """Blocks of `data`; before those that `cuts` numbers it says that it was asked, and waits until it may go on."""

    def __init__(self, data: bytes, cuts: list[int]) -> None:
        self.asked = threading.Semaphore(0)
        self.goes_on = threading.Semaphore(0)
        self._blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
        self._cuts = set(cuts)
        self._next = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        number, self._next = self._next, self._next + 1
        if number >= len(self._blocks):
            raise StopIteration
        if number in self._cuts:
            self.asked.release()
            self.goes_on.acquire(timeout=60)
        return self._blocks[number]

    async def later(self) -> AsyncIterator[bytes]:
        for number, block in enumerate(self._blocks):
            if number in self._cuts:
                self.asked.release()
                await _until(lambda: self.goes_on.acquire(blocking=False))
            yield block


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


#: Of a first connection, beside chunks: hello, offers, finish; welcome, accepts, acks, done; and their answers.
FIRST_CUTS = [
    (who, CutAtFrame(direction, frames, offset))
    for who, direction, most in (
        ("sender", UP, 12),
        ("sender", DOWN, 4),
        ("recipient1", UP, 6),
        ("recipient1", DOWN, 12),
    )
    for frames in range(most)
    for offset in (-1, 0, 1)
]


@cell("network: cut at each of a connection's first frames -1, 0, +1 byte")
async def cut_first_frames(trial: Trial) -> None:
    """Each end of a frame that is sure to come on a first connection has its turn, on either side and in either way."""
    who, cut = trial.turn(FIRST_CUTS)
    trial.first_cuts[who] = cut
    trial.note(f"{who} {cut.direction}, frame {cut.frames}, {cut.offset:+} byte")
    await trial.begin(big=3 * MIB + 77, before=3 * MIB, edge=256 * KIB + 1)
    trial.broken()
    trial.healed()
    left = await every(trial.moves, seconds=trial.deadline)
    party = next(party for party in trial.parties if party.name == who)
    trial.check(bool(left) or party.network.planned_cuts == 1, "so many frames did not pass")


def _any_cut(trial: Trial, frames: int) -> CutAtFrame:
    return CutAtFrame(trial.random.choice((UP, DOWN)), frames, trial.random.choice((-1, 0, 1)))


async def _black_hole(trial: Trial, *directions: Direction) -> None:
    """The old connection is held up, and its client comes back on a new one; then what was held arrives after all."""
    await trial.begin()
    await trial.moment("upload", "upload", "before")
    party = trial.sender if trial.upload.moving else trial.recipients[0]
    trial.broken()
    held = party.network.hold(*directions)
    # Whoever waits for 2.5 heartbeats notices; here the client's side is reset alone, so that it comes back at once.
    await asyncio.sleep(0.3 + trial.random.random())
    for connection in held:
        connection.drop_client()
    trial.healed()
    await asyncio.sleep(0.5 + 3 * trial.random.random())
    for connection in held:  # what lay on the way reaches the server now, under the old lease
        connection.release()
    await every(trial.moves, seconds=trial.deadline)


@cell("network: up swallowed, resumed, then un-blocked", quick=True)
async def black_hole_up(trial: Trial) -> None:
    await _black_hole(trial, UP)


@cell("network: down swallowed, resumed, then un-blocked")
async def black_hole_down(trial: Trial) -> None:
    await _black_hole(trial, DOWN)


@cell("network: both ways swallowed, resumed, then un-blocked")
async def black_hole_both(trial: Trial) -> None:
    await _black_hole(trial, UP, DOWN)


@cell("network: 7-byte slices", deadline=120)
async def slices(trial: Trial) -> None:
    await trial.begin(big=1 * MIB + 77, before=1 * MIB)
    for party in trial.parties:
        party.network.conditions.slice_bytes = 7
        party.network.conditions.rate = 0
    await trial.moment("upload")
    trial.sender.network.cut()
    trial.healed()


@cell("network: 8 Mbit/s with 40 ms delay", deadline=120)
async def slow(trial: Trial) -> None:
    await trial.begin(big=6 * MIB + 1, before=3 * MIB)
    for party in trial.parties:
        party.network.conditions.rate = 1e6
        party.network.conditions.delay = 0.04
    await trial.moment("upload", "before")
    trial.broken()
    trial.sender.network.cut()
    trial.healed()


@cell("network: packets lost at random", deadline=150, most_recovery=30, missing=loss.missing)
async def lossy(trial: Trial) -> None:
    """The kernel's own TCP, between clients and their proxies; one connection is cut as well, and resumes through it."""
    share = trial.turn((0.01, 0.03, 0.1))
    await trial.begin(big=24 * MIB - 1, before=8 * MIB + 1)
    with loss.Loss([party.network.port for party in trial.parties], share) as losing:
        await trial.moment("upload", "before")
        trial.broken()
        trial.sender.network.cut()
        trial.healed()
        await every(trial.moves, seconds=trial.deadline)
        trial.note(f"{losing.lost()} packets lost, {share:.0%} of all")
        trial.check(losing.lost() > 0, "no packet was lost")


@cell("network: sockets that live 1 s each", deadline=150, most_recovery=25)
async def short_lives(trial: Trial) -> None:
    await trial.begin(big=40 * MIB, rate=24e6)
    for party in trial.parties:
        party.network.conditions.life_seconds = 1.0
        party.network.cut()
    trial.broken()
    trial.healed()


SLOW_RATE = 3_000.0  # bytes a second
SLOW_BYTES = 180 * KIB  # one chunk each, of a minute: more than the 50 s after which a silent peer is dropped


@cell("network: 3 kB/s", deadline=240, most_recovery=150)
async def very_slow(trial: Trial) -> None:
    """Nobody is dropped while bytes of a chunk trickle in, whichever way."""
    await trial.begin(big=SLOW_BYTES, before=SLOW_BYTES, edge=1, rate=SLOW_RATE, recipients=1)
    for party in trial.parties:
        party.network.conditions.slice_bytes = 256
    trial.healed()
    await every(trial.moves, seconds=trial.deadline)
    for party in trial.parties:
        trial.check(not party.watch.closes, f"{party.name}: closed with {dict(party.watch.closes)}")


SWALLOWED_ABOVE = 32 * KIB
SWALLOWED_SECONDS = 60.0  # in which 6 MiB pass each way


@cell("network: a proxy that swallows messages above 32 KiB", deadline=120, most_recovery=60)
async def swallowing(trial: Trial) -> None:
    await trial.begin(big=6 * MIB, before=6 * MIB, edge=64 * KIB)
    for party in trial.parties:
        party.network.conditions.most_message = SWALLOWED_ABOVE
        party.network.cut()
    began = time.monotonic()
    trial.broken()
    trial.healed()
    left = await every(trial.moves, seconds=trial.deadline)
    trial.note(f"{time.monotonic() - began:.0f} s")
    trial.check(bool(left) or time.monotonic() - began < SWALLOWED_SECONDS, "6 MiB each way took longer than 60 s")
    trial.check(any(party.network.over_limit for party in trial.parties), "nothing was swallowed")
