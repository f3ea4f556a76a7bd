"""File names and small files: cleaning a name that a stranger chose, writing atomically, the user's directories."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

FOLDER = ".delivery"  # in a directory that is received into: what is ours
MAX_NAME_BYTES = 240  # most file systems take 255
NEW = ".new"  # ends the name of a file that is being written
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
