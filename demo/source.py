"""The payload of a run: a file that is given, or 64 MiB of noise."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from demo.account import amount

GENERATED_BYTES = 67_108_864
BLOCK_BYTES = 1_048_576
#: Storage and two recipients; room for the stack itself beside them.
COPIES = 3
SPARE_BYTES = 268_435_456


class DemoFailed(Exception):
    """The demo cannot go on; the message says why, in one line."""


@dataclass(frozen=True)
class Copy:
    """A payload where it was found: how many bytes, and their SHA-256."""

    size: int
    sha256: str


def generate(path: Path) -> None:
    """Write random bytes, which no part could compress or guess. Blocks."""
    with path.open("wb") as file:
        for _ in range(GENERATED_BYTES // BLOCK_BYTES):
            file.write(os.urandom(BLOCK_BYTES))


def copy_of(file: IO[bytes]) -> Copy:
    """Read an open file to its end. Blocks."""
    digest, size = hashlib.sha256(), 0
    while block := file.read(BLOCK_BYTES):
        digest.update(block)
        size += len(block)
    return Copy(size, digest.hexdigest())


def copy_at(path: Path) -> Copy:
    """Read the file at `path`. Blocks."""
    with path.open("rb") as file:
        return copy_of(file)


def check_room(size: int, directory: Path) -> None:
    """Raise DemoFailed unless a payload of `size` bytes fits into the directory as often as it will be there."""
    wanted, free = COPIES * size + SPARE_BYTES, shutil.disk_usage(directory).free
    if free < wanted:
        raise DemoFailed(f"{directory} has {amount(free)} free, and {amount(wanted)} are needed; set TMPDIR to another")
