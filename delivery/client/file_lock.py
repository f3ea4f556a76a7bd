"""Locks on open files, which keep processes apart that share a directory; a process that is killed loses its locks."""

from __future__ import annotations

import errno

try:
    import fcntl
except ImportError:  # Windows: two processes in one directory are then not kept apart
    fcntl = None  # type: ignore[assignment]

HELD_ELSEWHERE = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES})
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})  # NFS without its daemon, FUSE


def try_lock(descriptor: int) -> bool:
    """Lock an open file until it is closed; return False where another process, or another opening, holds it.

    Where the platform or the file system has no locks, True. Raises `OSError` for any other failure. Does not block.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD_ELSEWHERE:
            return False
        if error.errno not in NO_LOCKS:
            raise
    return True
