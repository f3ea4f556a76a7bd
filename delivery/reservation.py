"""Room for a file that grows, for both ends: blocks allocated many at a time, where the platform can.

`os.posix_fallocate` is no way to ask: where the file system cannot, glibc writes a byte into every block instead.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE: the file's length goes on saying how much of it was written
Fallocate = Callable[[int, int, int, int], int]


def _find_fallocate() -> Fallocate | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    found = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
    if found is not None:
        found.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return found


_fallocate = _find_fallocate()


def reserve(descriptor: int, offset: int, length: int) -> bool:
    """Have blocks allocated for bytes that will be written; return False where it cannot be done, for any reason.

    What is wrong shows when they are written. `offset`, `length`: bytes; the length of the file stays. Blocks.
    """
    return _fallocate is not None and _fallocate(descriptor, KEEP_SIZE, offset, length) == 0
