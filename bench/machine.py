"""The machine: what it is, its memory warmed, its disk."""

from __future__ import annotations

import mmap
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

MIB = 1024 * 1024
PAGE = 4096

_TOUCH = "import mmap,sys; m = mmap.mmap(-1, int(sys.argv[1])); [m.__setitem__(at, 1) for at in range(0, len(m), 4096)]"


def describe() -> str:
    """Return processor, cores, memory, kernel and versions, in one line."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "?"
    )
    memory = _kib("MemTotal") // (1024 * 1024)
    return (
        f"{os.cpu_count()} x {model}, {memory} GiB, Linux {platform.release()}, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}"
    )


def warm(size: int) -> None:
    """Touch `size` bytes of memory in a process that then ends, so that the next to use them need not wait for the host.

    Files of earlier rounds are written out first: else their writing would be in the next figure.
    """
    os.sync()
    size = min(size, _kib("MemAvailable") * 1024 // 2)
    if size >= PAGE:
        subprocess.run([sys.executable, "-S", "-c", _TOUCH, str(size // PAGE * PAGE)], check=True)


def check_room(directory: Path, size: int) -> None:
    """Raise RuntimeError unless `size` bytes fit into `directory` with a tenth to spare."""
    free = shutil.disk_usage(directory).free
    if free < size * 1.1:
        raise RuntimeError(f"{directory} has {free // MIB:,} MiB free, {size * 11 // 10 // MIB:,} are needed")


def random_file(path: Path, size: int) -> Path:
    """Make a file of `size` bytes that nothing can compress."""
    with path.open("wb") as file:
        while size > 0:
            file.write(os.urandom(min(size, 8 * MIB)))
            size -= 8 * MIB
    return path


def sparse_file(path: Path, size: int) -> Path:
    """Make a file of `size` zero bytes that takes no room."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def same(one: Path, other: Path) -> bool:
    """Return whether two files hold the same bytes."""
    if one.stat().st_size != other.stat().st_size:
        return False
    if not one.stat().st_size:
        return True
    with one.open("rb") as first, other.open("rb") as second:
        a = mmap.mmap(first.fileno(), 0, access=mmap.ACCESS_READ)
        b = mmap.mmap(second.fileno(), 0, access=mmap.ACCESS_READ)
        with a, b:
            return all(a[at : at + MIB] == b[at : at + MIB] for at in range(0, len(a), MIB))


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _kib(name: str) -> int:
    return next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith(name + ":"))
