"""The largest chunk that a URL took, remembered for 24 h after a 1009 (PROTOCOL section 6).

Kept in memory and in a small JSON file in the user's cache directory, so that the next process does not run into the
same limit. It is a cache: where it cannot be read or written, nothing is lost but a few attempts.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from urllib.parse import urlsplit

from delivery.client.files import cache_directory, write_atomically
from delivery.protocol.frames import is_chunk_size

REMEMBERED_SECONDS = 24 * 3600.0


class Ceilings:
    """Chunk ceilings in bytes by URL. `path`: the file, by default `ceilings.json` in the user's cache directory.

    A user without a home directory has none: then they are kept in memory only.
    """

    def __init__(self, path: Path | None = None) -> None:
        folder = cache_directory()
        self._path = path or (folder and folder / "ceilings.json")
        self._known: dict[str, tuple[int, float]] = {}

    def get(self, url: str) -> int | None:
        """Return the ceiling of `url`, None where none is remembered."""
        now = time.time()
        known = {**self._read(), **self._known}
        chunk_size, until = known.get(_key(url), (0, 0.0))
        return chunk_size if now < until <= now + REMEMBERED_SECONDS and is_chunk_size(chunk_size) else None

    def remember(self, url: str, chunk_size: int) -> None:
        """Note that chunks of `chunk_size` bytes are the largest to try at `url`."""
        now = time.time()
        self._known[_key(url)] = (chunk_size, now + REMEMBERED_SECONDS)
        if self._path is None:
            return
        current = {key: entry for key, entry in {**self._read(), **self._known}.items() if entry[1] > now}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(current).encode())
        except OSError:
            pass

    def _read(self) -> dict[str, tuple[int, float]]:
        if self._path is None:
            return {}
        try:
            found = json.loads(self._path.read_bytes())
            return {str(key): (int(entry[0]), float(entry[1])) for key, entry in found.items()}
        except (OSError, ValueError, TypeError, AttributeError, IndexError, KeyError):
            return {}


def _key(url: str) -> str:
    """Return the URL without login and query: neither changes what fits through."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def default_ceilings() -> Ceilings:
    return Ceilings(Path(override) if (override := os.environ.get("DELIVERY_CEILINGS")) else None)
