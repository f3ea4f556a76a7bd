"""The directory that a program receives into: which client it is to the server, one process at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from delivery.client.file_lock import try_lock
from delivery.client.files import FOLDER
from delivery.client.notes import prune
from delivery.errors import DeliveryError

CLIENT_ID_BYTES = 64


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
            self._find_client_id()
        except BaseException as error:
            self.__exit__()
            if isinstance(error, OSError):
                where = self._path.parent.parent
                raise DeliveryError(f"cannot receive into {where}: {error.strerror or error}") from error
            raise
        prune(self._path.parent)
        return self

    def _lock(self) -> None:
        if not try_lock(self._descriptor):
            where = self._path.parent.parent
            raise DeliveryError(f"another process is receiving into {where}: use another --dir")

    def _find_client_id(self) -> None:
        known = os.read(self._descriptor, CLIENT_ID_BYTES + 1).decode("ascii", errors="replace").strip()
        if known.isalnum() and len(known) <= CLIENT_ID_BYTES:
            self.client_id = known
            return
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, self.client_id.encode(), 0)
        os.fsync(self._descriptor)

    def __exit__(self, *error: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
