"""What a row is given: how often and how much to measure, servers and clients that end with it, files, warm memory."""

from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from bench import machine
from bench.children import Child, environment
from bench.figures import Figure
from bench.install import PYTHON
from bench.machine import MIB
from bench.meter import Cost, Groups
from bench.peers.server import Server
from bench.stack import Stack

ROUNDS, QUICK_ROUNDS = 5, 2
#: glibc keeps what was freed, as our command-line client has it (`delivery.client.cli.main`).
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "67108864",
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "MALLOC_TOP_PAD_": "16777216",
}
OUR_CLIENT, PLAIN_CLIENT = "bench.clients.ours", "bench.clients.plain"
CROWD, CHATTER, THROTTLE = "bench.clients.load", "bench.clients.chatter", "bench.clients.throttle"
LIGHT = (CROWD, CHATTER)

P = TypeVar("P", bound=Server)


@dataclass(frozen=True)
class Plan:
    """How much is measured. `rounds`: None for as many as usual."""

    quick: bool = False
    rounds: int | None = None

    def count(self) -> int:
        """Return the number of rounds."""
        return self.rounds or (QUICK_ROUNDS if self.quick else ROUNDS)

    def scaled(self, full: int, quick: int) -> int:
        """Return a size or number: `full`, or in a quick run `quick`."""
        return quick if self.quick else full


class Row(Protocol):
    """What a module of `bench.rows` has. `MUST`: what has to be shown, and the aim, as text."""

    NAME: str
    MUST: str

    def run(self, bench: Bench) -> Figure: ...


class Bench:
    """One row's world, in a directory of its own. `with`: on leaving all processes have ended and files are gone."""

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self.plan = plan
        self.say = say
        self.directory = Path()
        self._ending = ExitStack()
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="delivery-bench-"))
        self._ending.callback(shutil.rmtree, self.directory, ignore_errors=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.close()

    # -- servers and clients -----------------------------------------------------------------------------------------

    def stack(self, *options: str, **variables: str) -> Stack:
        """Start ours, as `manage.py up` with `options`."""
        stack = Stack(self.directory / f"ours{next(self._numbers)}", *options, **variables)
        return self._ending.enter_context(stack)

    def peer(self, kind: type[P]) -> P:
        """Start a peer."""
        return self._ending.enter_context(kind(self.directory / kind.__name__.lower()))

    def keep(self, child: Child) -> Child:
        """End a client with the row."""
        self._ending.callback(child.stop)
        return child

    def client(self, module: str) -> Child:
        """Start a client process; it has said that it is ready."""
        python = str(PYTHON) if module in LIGHT else sys.executable
        log = self.directory / f"{module.rpartition('.')[2]}{next(self._numbers)}.log"
        variables = environment(**KEEP_MEMORY, DELIVERY_CEILINGS=str(self.directory / "ceilings.json"))
        child = self.keep(Child([python, "-m", module], log=log, variables=variables))
        child.hear()
        return child

    # -- files -------------------------------------------------------------------------------------------------------

    def room(self, size: int) -> None:
        """Raise RuntimeError unless `size` bytes fit onto the disk."""
        machine.check_room(self.directory, size)

    def source(self, size: int, name: str = "source.bin") -> Path:
        """Make a file of `size` random bytes."""
        self.room(4 * size)
        return machine.random_file(self.directory / name, size)

    def folder(self, name: str) -> Path:
        """Return a new, empty directory."""
        path = self.directory / f"{name}{next(self._numbers)}"
        path.mkdir()
        return path

    # -- measuring ---------------------------------------------------------------------------------------------------

    def pairs(
        self, ours: Callable[[], float], peer: Callable[[], float], *, warm: int, unit: str
    ) -> tuple[list[float], list[float]]:
        """Measure ours and a peer in turns, and who begins in turns too; `warm` bytes of memory before each.

        Nothing is measured before both were called once: caches, connections and imports are not what is compared.
        """
        ours()
        peer()
        found: dict[str, list[float]] = {"ours": [], "peer": []}
        for number in range(self.plan.count()):
            both = [("ours", ours), ("peer", peer)]
            for name, measure in both if number % 2 == 0 else reversed(both):
                machine.warm(warm)
                found[name].append(measure())
            self.say(f"round {number + 1}: {found['ours'][-1]:.4g} against {found['peer'][-1]:.4g} {unit}")
        return found["ours"], found["peer"]

    def rounds(self, measure: Callable[[], float], *, warm: int, unit: str) -> list[float]:
        """Measure ours alone, a few times."""
        found = []
        for number in range(self.plan.count()):
            machine.warm(warm)
            found.append(measure())
            self.say(f"round {number + 1}: {found[-1]:.4g} {unit}")
        return found


class Costs:
    """What servers cost in the last round of each: `of` wraps a measurement; `cpu` and `memory` go into the figure."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}
        self.memory: dict[str, float] = {}

    def of(self, who: str, groups: Callable[[], Groups], measure: Callable[[], Any]) -> Any:
        """Return what `measure` returns, and note what it cost `groups`."""
        with Cost(groups()) as cost:
            value = measure()
        self.cpu |= {f"{who} {name}": seconds for name, seconds in cost.cpu.items()}
        self.memory |= {f"{who} {name}": mib for name, mib in cost.peaks.items()}
        return value


def megabytes_a_second(size: int, seconds: float) -> float:
    """Return a rate in MB/s (10^6 bytes)."""
    return size / seconds / 1e6


def require(holds: bool, what: str) -> None:
    """Raise RuntimeError unless what was measured is also right."""
    if not holds:
        raise RuntimeError(what)


__all__ = ["MIB", "Bench", "Costs", "Plan", "Row", "megabytes_a_second", "require"]
