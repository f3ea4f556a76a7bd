"""Giving a finished part its name in the directory: one that is safe, without replacing a file or leaving half a step.

It knows file systems, and nothing of deliveries. What touches files blocks, and raises `OSError`.
"""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path

MAX_NAME_BYTES = 240  # most file systems take 255
NUMBER_BYTES = 15  # " (12345)" must fit too
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_INVISIBLE = frozenset("\u200b\u2060\ufeff\u00ad")
_RESERVED_CHARACTERS = frozenset('<>:"|?*')
_RESERVED_NAMES = frozenset(
    {
        "con",
        "prn",
        "aux",
        "nul",
        "conin$",
        "conout$",
        *(f"{port}{n}" for port in ("com", "lpt") for n in "123456789¹²³"),
    }
)
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


def clean_name(name: str, most: int = MAX_NAME_BYTES) -> str:
    """Return a file name that is safe in any directory and shows what it is; "payload" where nothing is left.

    Path parts, control characters and those that turn text around are removed, hidden names made visible, what
    Windows reserves or this system's encoding lacks replaced, and the stem shortened so that the extension stays.
    `most`: bytes of the whole name in UTF-8, at least 64.
    """
    last = unicodedata.normalize("NFC", name).replace("\\", "/").rpartition("/")[2]
    kept = "".join(character if _storable(character) else "_" for character in last if _visible(character))
    cleaned = kept.strip(" .\u3000")
    if not cleaned:
        return "payload"
    stem, extension = os.path.splitext(cleaned)
    if stem.split(".")[0].strip().lower() in _RESERVED_NAMES:
        stem = f"_{stem}"
    if len(extension.encode()) > 32:
        stem, extension = stem + extension, ""
    return _shortened(stem, most - len(extension.encode())) + extension


def _visible(character: str) -> bool:
    if character in _BIDI or character in _INVISIBLE:
        return False
    return unicodedata.category(character) not in {"Cc", "Cs", "Zl", "Zp"}


def _storable(character: str) -> bool:
    try:
        os.fsencode(character)
    except UnicodeEncodeError:
        return False
    return character not in _RESERVED_CHARACTERS


def longest_name(directory: Path) -> int:
    """Return how many bytes a name in `directory` may have, a number behind it included."""
    try:
        longest = os.pathconf(directory, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # not on Windows
        return MAX_NAME_BYTES
    return max(64, min(MAX_NAME_BYTES, longest - NUMBER_BYTES))


def _shortened(text: str, most: int) -> str:
    """Return `text` cut to `most` bytes of UTF-8, never inside a character."""
    return text.encode(errors="replace")[:most].decode(errors="ignore").rstrip(" .")


def candidates(name: str) -> Iterator[str]:
    """Yield `name`, then "name (1).ext", "name (2).ext" and so on."""
    yield name
    stem, extension = os.path.splitext(name)
    number = 1
    while True:
        yield f"{stem} ({number}){extension}"
        number += 1


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
