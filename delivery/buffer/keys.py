"""Names of keys and channels. All begin with the site's prefix and the version of this layout."""

from __future__ import annotations

from uuid import UUID

from delivery import conf

#: Raise it when the meaning of keys changes: old and new processes then use separate keys. For a single key, change its letter.
LAYOUT = "1"


def _key(*parts: object) -> str:
    return ":".join((conf.current().prefix, LAYOUT, *map(str, parts)))


def chunk(payload: UUID, lease: int, seq: int) -> str:
    """The data of one chunk. Its name has the lease, so that nobody reads what an old writer writes."""
    return _key("c", payload.hex, lease, seq)


def chunks(payload: UUID, lease: int, start: int, end: int) -> list[str]:
    """What `chunk` returns for chunks `start` to `end` (exclusive)."""
    before = _key("c", payload.hex, lease, "")
    return [f"{before}{seq}" for seq in range(start, end)]


def checksums(payload: UUID, lease: int, start: int) -> str:
    """CRC-32C of each chunk of the run that begins at chunk `start`, as big-endian u32."""
    return _key("k", payload.hex, lease, start)


def progress(payload: UUID, lease: int) -> str:
    """How far the chunks of a lease are buffered: `<chunk size>:<byte position>`."""
    return _key("p", payload.hex, lease)


def group(payload: UUID, index: int) -> str:
    """Group `index` of blocks (2 MiB by offset) of a payload."""
    return _key("g", payload.hex, index)


def range_checksums(payload: UUID, index: int) -> str:
    """CRC-32C of each block of range `index` (16 MiB by offset), as big-endian u32. Exists if the range is staged."""
    return _key("s", payload.hex, index)


def marker(*parts: object) -> str:
    """A marker: this work has been requested, and need not be requested again for a while."""
    return _key("m", *parts)


def workers() -> str:
    """Sorted set of live workers by Redis time."""
    return _key("workers")


def webs() -> str:
    """Sorted set of live web processes by Redis time."""
    return _key("webs")


def left(worker: str) -> str:
    """Exists while that worker drains."""
    return _key("left", worker)


def handover(payload: UUID, lease: int) -> str:
    """Runs for the task that works on that upload; exists while a task takes more."""
    return _key("o", payload.hex, lease)


def digest(payload: UUID) -> str:
    """How far a payload is hashed."""
    return _key("h", payload.hex)


def channel(topic: str) -> str:
    """The pub/sub channel of wake-ups on `topic`; channels know no database numbers, hence the prefix."""
    return _key("w", topic)
