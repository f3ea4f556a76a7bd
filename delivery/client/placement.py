"""Giving a finished part its name in the directory, without ever replacing a file and without leaving half a step.

It knows file systems, and nothing of deliveries. All of it blocks, and raises `OSError`.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

#: How a file system says that it has no hard links, or none here. Everything else is a failure.
NO_HARD_LINKS = frozenset(
    {
        errno.EPERM,  # link(2): vfat, exFAT, BeeGFS; /proc/sys/fs/protected_hardlinks
        errno.ENOTSUP,  # macOS on exFAT and SMB, FreeBSD; the same number as EOPNOTSUPP on Linux
        errno.EOPNOTSUPP,
        errno.ENOSYS,  # file systems in user space that do not implement it
        errno.EXDEV,  # unions of several file systems (mergerfs), which rename all the same
        errno.EMLINK,  # one link a file is the most
        errno.EACCES,  # Android's shared storage; a directory that cannot be written refuses the rename too
        *({errno.EINVAL} if os.name == "nt" else ()),  # FAT under Windows
    }
)


def link(part: Path, target: Path) -> bool:
    """Give the part `target` as a second name; return False where that name is taken."""
    try:
        os.link(part, target)
    except FileExistsError:
        # NFS repeats a request whose answer was lost: then it was us who took the name.
        return is_same(part, target)
    return True


def has_no_hard_links(error: OSError) -> bool:
    """Return whether `link` failed since the file system cannot do it."""
    return error.errno in NO_HARD_LINKS


def claim_and_rename(part: Path, target: Path) -> bool:
    """Take the name with an empty file, and rename the part onto that; return False where the name is taken.

    For where there are no hard links. A failure leaves no empty file; a crash between the two calls does.
    """
    try:
        descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    claim = os.fstat(descriptor)
    os.close(descriptor)
    try:
        os.replace(part, target)
    except BaseException:
        if os.path.samestat(os.lstat(target), claim):
            target.unlink()
        raise
    return True


def remove_claim(target: Path) -> None:
    """Remove the empty file that a process left which was killed in `claim_and_rename`; anything else stays."""
    try:
        found = os.lstat(target)
    except FileNotFoundError:
        return
    if stat.S_ISREG(found.st_mode) and found.st_size == 0:
        target.unlink()


def is_file_of(path: Path, descriptor: int) -> bool:
    """Return whether `path` is the very file that `descriptor` has open."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def is_same(one: Path, other: Path) -> bool:
    """Return whether both names are there, and are one file's."""
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except FileNotFoundError:
        return False
