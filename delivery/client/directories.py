"""The directory that a program receives into: which client it is to the server, one process at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from delivery.client.files import FOLDER
from delivery.errors import DeliveryError

try:
    import fcntl
except ImportError:  # Windows: two processes that receive into the same directory are then not kept apart
    fcntl = None  # type: ignore[assignment]


class ReceivingDirectory:
    """Says which client a directory is to the server, and lets one process at a time be it.

    Whoever receives into it goes on with what an earlier process began there. Raises `DeliveryError` where another
    process is receiving into it, or it cannot be written.
    """

    def __init__(self, directory: Path, fresh_id: str) -> None:
        self._path = directory / FOLDER / "client"
        self._descriptor = -1
        self.client_id = fresh_id

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            self._lock()
            known = os.read(self._descriptor, 64).decode("ascii", errors="replace").strip()
            if known.isalnum():
                self.client_id = known
            else:
                os.pwrite(self._descriptor, self.client_id.encode(), 0)
                os.fsync(self._descriptor)
        except OSError as error:
            raise DeliveryError(f"cannot receive into {self._path.parent.parent}: {error.strerror or error}") from error
        return self

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            where = self._path.parent.parent
            raise DeliveryError(f"another process is receiving into {where}: use another --dir") from error

    def __exit__(self, *error: object) -> None:
        os.close(self._descriptor)
