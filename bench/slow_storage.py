"""A Storage that writes slowly: what a remote or a spinning backend does to a worker.

All tasks of one Celery worker share one rate, as they would share its network: whoever writes next takes its turn from a
file that they all lock.
"""

from __future__ import annotations

import fcntl
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from celery import current_task
from django.core.files.base import File
from django.core.files.storage import FileSystemStorage

_TIME = struct.Struct("d")


class SlowStorage(FileSystemStorage):
    """A FileSystemStorage that writes at most `rate` bytes a second in each worker. `turns`: a directory for locks."""

    def __init__(self, *, rate: float, turns: str, **options: Any) -> None:
        super().__init__(**options)
        self._rate = rate
        self._turns = Path(turns)

    def _save(self, name: str, content: Any) -> str:
        return str(super()._save(name, _Slowed(content, self)))

    def wait(self, size: int) -> None:
        """Return when `size` bytes more may have been written."""
        with open(self._turns / str(current_task.request.hostname), "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            known = file.read(_TIME.size)
            now = time.monotonic()
            free_at = max(now, _TIME.unpack(known)[0] if known else 0.0) + size / self._rate
            file.truncate(0)
            file.write(_TIME.pack(free_at))
        time.sleep(max(0.0, free_at - now))


class _Slowed(File):  # type: ignore[type-arg]
    """The content of a save, given out no faster than allowed."""

    def __init__(self, content: Any, storage: SlowStorage) -> None:
        super().__init__(None)
        self._content = content
        self._storage = storage

    def chunks(self, chunk_size: int | None = None) -> Iterator[bytes]:
        for piece in self._content.chunks():
            self._storage.wait(len(piece))
            yield piece

    def __bool__(self) -> bool:
        return True
