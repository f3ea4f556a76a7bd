"""One trial: who moves what, when the fault comes, and what must hold at the end.

Everything that is chosen is drawn from the trial's own seed, so that a failing trial can be run again. The scheduling of
processes is the machine's, and is not replayed.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from faults import site
from faults.commands import Command
from faults.people import Move, Party, every
from faults.site import ask
from rig.proxy import Conditions, CutAtFrame, Proxy
from rig.stack import Stack

T = TypeVar("T")
KIB, MIB = 1024, 1024 * 1024
#: Sizes at which something changes: empty, inline, one chunk, one range, and a byte on either side.
EDGES = (
    *(0, 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1),
    *(256 * KIB - 1, 256 * KIB, 256 * KIB + 1, 1 * MIB + 4095),
    *(8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 16 * MIB - 1, 16 * MIB, 16 * MIB + 1),
)
BIGS = (24 * MIB - 1, 24 * MIB, 32 * MIB + 1, 40 * MIB + 77, 64 * MIB)
BEFORES = (8 * MIB + 1, 24 * MIB - 1, 40 * MIB)
RATES = (24e6, 40e6, 64e6)
POOL_BYTES = 66 * MIB
SETTLE_SECONDS = 45.0  # the sweep comes every 30 s, and does what a lost task did not
FREED_SECONDS = 10.0

_pool = random.Random(1).randbytes(POOL_BYTES)


@dataclass
class Outcome:
    """What came of a trial. `recovery`: seconds from healing until everything moved again, None where nothing moved."""

    problems: list[str] = field(default_factory=list)
    recovery: float | None = None
    again_bytes: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)


class Trial:
    """One trial on a running stack. A cell's body calls `begin`, `moment`, `broken`, `healed`; the runner `finish`."""

    def __init__(
        self,
        stack: Stack,
        folder: Path,
        series: str,
        number: int,
        *,
        hurry: bool,
        deadline: float,
        most_recovery: float,
    ) -> None:
        self.stack = stack
        self.folder = folder
        self.random = random.Random(f"{series}/{number}")
        self._series, self._number = series, number  # what all trials of the cell share; which of them this is
        self.hurry = hurry  # shorter faults than promised ones, for tests
        self.deadline = deadline
        self.outcome = Outcome()
        self.parties: list[Party] = []
        self.commands: list[Command] = []
        self.moves: list[Move] = []
        self.digests: dict[str, str] = {}
        self.may_orphan = False
        self.may_fail: set[str] = set()  # names of payloads whose transfers may fail, visibly
        self.must_fail: set[str] = set()  # names of payloads that nobody may get
        self.may_wait = False  # a delivery that its client has ended may wait for another client
        self.first_cuts: dict[str, CutAtFrame] = {}  # where a party's first connection is cut
        self.more_again: list[int] = []  # bytes sent again by clients that are no party
        self._most_recovery = most_recovery
        self._exits = AsyncExitStack()
        self._broken_at: float | None = None
        self._healed_at: float | None = None
        self._people: list[int] = []
        self._undo: list[Callable[[], object]] = []

    @property
    def people_ids(self) -> list[int]:
        """The primary keys of everybody who takes part."""
        return self._people

    # -- who moves what ----------------------------------------------------------------------------------------------

    async def people(self, count: int) -> list[site.Person]:
        found = await ask(site.make_people, count)
        self._people += [person.pk for person in found]
        return found

    async def enter(self, manager: AbstractAsyncContextManager[T]) -> T:
        """Enter a context for as long as the trial lasts."""
        return await self._exits.enter_async_context(manager)

    async def deliver(self, name: str, size: int, people: list[site.Person]) -> str:
        """Deliver random bytes from the server's side; return the payload's id."""
        return await ask(site.deliver_to, self.data(name, size), [person.pk for person in people], name=name)

    def data(self, name: str, size: int) -> bytes:
        """Return random bytes, and remember their digest under a payload's name."""
        start = self.random.randrange(POOL_BYTES - size + 1)
        data = _pool[start : start + size]
        self.digests[name] = hashlib.sha256(data).hexdigest()
        return data

    async def party(self, name: str, person: site.Person, *, rate: float = 0.0, **options: Any) -> Party:
        """Let somebody take part, behind a network of their own."""
        cuts = {1: self.first_cuts.get(name)}
        network = await self.enter(Proxy(self.stack.port, Conditions(rate=rate), cuts=cuts.get))
        folder = self.folder / name
        folder.mkdir()
        party = await self.enter(Party(name, person, network, folder, **options))
        self.parties.append(party)
        party.moves = self.moves
        return party

    def turn(self, choices: Sequence[T]) -> T:
        """Return the choice whose turn it is: as many trials as there are choices have all of them, in a seeded order."""
        lap, at = divmod(self._number, len(choices))
        return random.Random(f"{self._series}/lap {lap}").sample(choices, len(choices))[at]

    async def begin(
        self, *, big: int = 0, rate: float = 0.0, recipients: int = 0, before: int = 0, edge: int | None = None
    ) -> None:
        """Start an upload of some size and one of a size at an edge, and a delivery that waits already."""
        draw = self.random
        self.rate = rate or draw.choice(RATES)
        count = recipients or draw.choice((1, 2))
        people = await self.people(1 + count)
        before = before or draw.choice(BEFORES)
        await self.deliver("before.bin", before, people[1:])
        self.sender = await self.party("sender", people[0], rate=self.rate)
        self.recipients = [
            await self.party(f"recipient{number}", person, rate=self.rate, receive=True)
            for number, person in enumerate(people[1:], 1)
        ]
        for party in (self.sender, *self.recipients):
            await asyncio.wait_for(party.ready(), 20)
        big, edge = big or draw.choice(BIGS), draw.choice(EDGES) if edge is None else edge
        to = [person.address for person in people[1:]]
        for party in self.recipients:
            for name, size in (("before.bin", before), ("big.bin", big), ("edge.bin", edge)):
                party.expect(name, size)
            party.receive()
        self.upload = self.sender.send(self.data("big.bin", big), to, "big.bin")
        self.sender.send(self.data("edge.bin", edge), to, "edge.bin")

    def delivery(self, name: str, recipient: int = 0) -> Move:
        return self.recipients[recipient].expected[name]

    # -- when --------------------------------------------------------------------------------------------------------

    async def moment(self, *names: str) -> None:
        """Wait for a moment of the trial: a share of a transfer that the seed chose. `names`: upload, before, big."""
        which = self.random.choice(names or ("upload", "upload", "before", "big"))
        move = self.upload if which == "upload" else self.delivery(f"{which}.bin")
        share = self.random.random() * 0.95
        self.outcome.notes.append(f"at {share:.0%} of {which} ({move.size} bytes)")
        left = await every([move], seconds=60, look=lambda one: one.share >= share and one.began is not None)
        if left:
            raise TimeoutError(f"{which} did not reach {share:.0%} undisturbed")
        await asyncio.sleep(self.random.random() * 0.05)

    def broken(self, *, at: float | None = None) -> None:
        """Note that the fault begins now, or began `at` (monotonic seconds)."""
        self._broken_at = time.monotonic() if at is None else at

    def healed(self, *, at: float | None = None) -> None:
        """Note that what was broken works again, or has since `at` (monotonic seconds)."""
        self._healed_at = time.monotonic() if at is None else at
        self._broken_at = self._broken_at or self._healed_at

    def afterwards(self, undo: Callable[[], object]) -> None:
        """Call `undo` once everything that the trial moved has been let go of."""
        self._undo.append(undo)

    def note(self, text: str) -> None:
        self.outcome.notes.append(text)

    def problem(self, text: str) -> None:
        self.outcome.problems.append(text)

    def check(self, holds: bool, text: str) -> None:
        if not holds:
            self.problem(text)

    # -- the end -----------------------------------------------------------------------------------------------------

    async def finish(self) -> Outcome:
        """Wait for the end of everything, and check all that must hold."""
        left = await every(self._awaited(), seconds=self.deadline)
        for move in left:
            if move in self._awaited():
                self.problem(f"{move.who}: {move.name} has not ended, at {move.stored} of {move.size} bytes")
        self._check_moves()
        self._measure_recovery()
        if not left:
            await self._check_site()
        for party in self.parties:
            self.outcome.problems += party.watch.problems
            self.outcome.again_bytes += party.again_bytes
        for command in self.commands:
            self.outcome.problems += command.watch.problems
            self.outcome.again_bytes += command.again_bytes
        self.outcome.again_bytes += sum(self.more_again)
        return self.outcome

    def _awaited(self) -> list[Move]:
        """Return the moves that must end: not the deliveries of what failed."""
        failed = {move.name for move in self.moves if move.error is not None and move.name in self.may_fail}
        return [move for move in self.moves if move.name not in failed | self.must_fail or move.began is not None]

    def _check_moves(self) -> None:
        for move in self.moves:
            if move.error is not None and move.name not in self.may_fail | self.must_fail:
                self.problem(f"{move.who}: {move.name} failed: {move.error!r}")
            elif move.sha256 and (move.name in self.must_fail or move.sha256 != self.digests[move.name]):
                self.problem(f"{move.who}: {move.name} ended as {move.sha256[:12]}, not {self.digests[move.name][:12]}")

    def _measure_recovery(self) -> None:
        if self._broken_at is None or self._healed_at is None:
            return
        times = []
        for move in self.moves:
            if move.began is None or move.began > self._broken_at or move.error is not None:
                continue
            if move.ended is not None and move.ended <= self._healed_at:
                continue
            if (at := move.moved_after(self._healed_at)) is not None:
                times.append(at - self._healed_at)
        if times:
            self.outcome.recovery = max(times)
            if self.outcome.recovery > self._most_recovery:
                self.problem(f"moved again only after {self.outcome.recovery:.1f} s, at most {self._most_recovery} s")
        self._check_going_on(self._healed_at)

    def _check_going_on(self, since: float) -> None:
        """Whoever has moved again may stand still later: on what the fault left behind where it was not yet."""
        for move in self.moves:
            if move.error is None and (stood := move.longest_stop(since)) > self._most_recovery:
                self.problem(f"{move.who}: {move.name} stood still for {stood:.1f} s, at most {self._most_recovery} s")

    async def _check_site(self) -> None:
        problems = self.outcome.problems
        failures = bool(self.may_fail | self.must_fail)
        deadline = time.monotonic() + (0 if self.may_wait else SETTLE_SECONDS)
        while found := await ask(site.unsettled, self._people, failures=failures):
            if time.monotonic() > deadline:
                problems += [] if self.may_wait else found
                break
            await asyncio.sleep(0.1)
        for move in self.moves:
            if move.payload and move.sha256 and await ask(site.stored_digest, move.payload) != move.sha256:
                self.problem(f"Storage holds something else of {move.name}")
        problems += await ask(site.wrong_rows, self._people)
        await self._check_left()

    async def _check_left(self) -> None:
        """Look for what nobody needs any more: files, keys."""
        folder = self.stack.var / "payloads"
        found: list[str] = []
        deadline = time.monotonic() + FREED_SECONDS
        while time.monotonic() < deadline:  # a loser deletes its own file a moment later
            found = await ask(site.orphans, self._people, folder)
            if not found or self.may_orphan:
                break
            await asyncio.sleep(0.2)
        if found and not self.may_orphan:
            self.problem(f"{len(found)} orphan files: {found[:3]}")
        await ask(site.sweep_orphans, self._people)
        if found := await ask(site.orphans, self._people, folder):
            self.problem(f"{len(found)} orphan files that the sweep does not find: {found[:3]}")
        if found := await ask(site.nameless, folder):
            self.problem(f"{len(found)} folders with files of payloads without rows: {found[:3]}")
        if keys := await ask(self.stack.keys_without_ttl):
            self.problem(f"{len(keys)} keys without a TTL: {keys[:3]}")

    async def describe(self) -> None:
        """Gather what a reader of a failing trial wants to see."""
        self.outcome.log += await ask(site.dump, self._people)
        for party in self.parties:
            self.outcome.log += party.watch.log[-60:]
        for command in self.commands:
            self.outcome.log += [*command.watch.log[-60:], *command.complaints]

    async def leave(self) -> None:
        """Let go of everybody, and of everything that was moved."""
        try:
            await self._let_go()
        finally:
            for undo in self._undo:
                undo()

    async def _let_go(self) -> None:
        for command in self.commands:
            await command.end()
        await self._exits.aclose()
        payloads = await ask(site.payloads_of, self._people)
        await ask(site.discard, self._people)
        kept = [payload for payload in payloads if (self.stack.var / "payloads" / payload).exists()]
        if kept and not self.outcome.problems:
            self.problem(f"folders of {len(kept)} payloads are left after they were discarded")
