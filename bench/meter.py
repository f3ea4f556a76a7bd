"""Processor time and memory of groups of processes: each group is a process with all that it started."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
SAMPLE_SECONDS = 0.25

Groups = Mapping[str, int]  # a process by name


def tree(root: int) -> list[int]:
    """Return a process and all its descendants that live."""
    found = [root]
    for pid in found:
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return found


def cpu_seconds(groups: Groups) -> dict[str, float]:
    """Return the processor time that each group has used so far, seconds."""
    return {name: sum(map(_cpu, tree(pid))) for name, pid in groups.items()}


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def forget_peaks(groups: Groups) -> None:
    """Have the kernel count each process's peak memory from now on."""
    for root in groups.values():
        for pid in tree(root):
            try:
                Path(f"/proc/{pid}/clear_refs").write_text("5")
            except OSError:
                continue


def peak_mib(groups: Groups) -> dict[str, float]:
    """Return the most memory that each process of each group had resident, MiB; shared pages count in each."""
    peaks = {}
    for name, root in groups.items():
        for number, pid in enumerate(tree(root)):
            if (kib := _field(f"/proc/{pid}/status", "VmHWM:")) is not None:
                peaks[name if number == 0 else f"{name}.{number}"] = round(kib / 1024, 1)
    return peaks


def pss_kib(root: int) -> int:
    """Return the memory of a group, KiB; a page that n processes share counts 1/n in each."""
    return sum(_field(f"/proc/{pid}/smaps_rollup", "Pss:") or 0 for pid in tree(root))


def _field(path: str, name: str) -> int | None:
    try:
        for line in Path(path).read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1])
    except OSError:
        pass
    return None


class MemorySampler:
    """Samples the memory of groups a few times a second, in a thread, while its block runs.

    `growth_mib`: for each group the most that it had above its size on entering. `measure`: KiB of a group.
    """

    def __init__(self, groups: Groups, measure: Callable[[int], int] = pss_kib) -> None:
        self._groups = dict(groups)
        self._measure = measure
        self._first: dict[str, int] = {}
        self._most: dict[str, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory")

    def __enter__(self) -> MemorySampler:
        self._first = self._sample()
        self._most = dict(self._first)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._note()

    def growth_mib(self) -> dict[str, float]:
        return {name: round((self._most[name] - first) / 1024, 1) for name, first in self._first.items()}

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._note()

    def _note(self) -> None:
        for name, kib in self._sample().items():
            self._most[name] = max(self._most[name], kib)

    def _sample(self) -> dict[str, int]:
        return {name: self._measure(pid) for name, pid in self._groups.items()}


class Cost:
    """Processor time and peak memory of servers over a block: `cpu` in seconds, `peaks` in MiB, by name."""

    def __init__(self, groups: Groups) -> None:
        self._groups = dict(groups)
        self.cpu: dict[str, float] = {}
        self.peaks: dict[str, float] = {}
        self.seconds = 0.0

    def __enter__(self) -> Cost:
        forget_peaks(self._groups)
        self._before = cpu_seconds(self._groups)
        self._began = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.monotonic() - self._began
        after = cpu_seconds(self._groups)
        self.cpu = {name: round(after[name] - self._before[name], 2) for name in after}
        self.peaks = peak_mib(self._groups)
