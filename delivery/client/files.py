"""Files that several processes share: locked, written atomically; and the user's directories for what is kept.

A process that is killed loses its locks.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: two processes in one directory are then not kept apart
    fcntl = None  # type: ignore[assignment]

HELD_ELSEWHERE = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES})
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})  # NFS without its daemon, FUSE
NEW = ".new"  # ends the name of a file that is being written


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


def write_atomically(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Replace the file at `path`; a reader sees the old content or the new. `durable`: also after a power cut."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}{NEW}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable, where the platform can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def cache_directory() -> Path | None:
    """Return the directory for what may be lost (XDG Base Directory Specification); None for a user without a home."""
    return _user_directory("XDG_CACHE_HOME", ".cache")


def state_directory() -> Path | None:
    """Return the directory for what should outlive a process (XDG Base Directory Specification); None without a home."""
    return _user_directory("XDG_STATE_HOME", ".local/state")


def _user_directory(variable: str, fallback: str) -> Path | None:
    configured = os.environ.get(variable, "")
    if os.path.isabs(configured):
        return Path(configured) / "delivery"
    try:
        return Path.home() / fallback / "delivery"
    except RuntimeError:  # in a container whose user is not in its /etc/passwd
        return None
