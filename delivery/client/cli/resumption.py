"""Remembers the upload of a command, so that the same command resumes it.

One small file per upload in the user's state directory. Its name is derived from what identifies a command: the file's
absolute path, size and modification time, the URL, the recipients and the name. It is removed when the upload ends.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from delivery.client.files import state_directory, write_atomically

try:
    import fcntl
except ImportError:  # Windows: the same command twice at once then takes its own upload over
    fcntl = None  # type: ignore[assignment]

KEPT_DAYS = 7  # longer than a server keeps an upload that nobody goes on with


class Resumption:
    """The remembered transfer id of sending `file`; `resumed` says whether an earlier command began it, `kept`
    whether a later one will know it.

    Where another process runs the same command at this moment, this one sends anew and remembers nothing. Where the
    state directory cannot be written, or the user has no home directory, nothing is remembered either.
    """

    def __init__(self, file: Path, url: str, to: Sequence[str], name: str, *, folder: Path | None = None) -> None:
        found = file.stat()
        same = [str(file.resolve()), found.st_size, found.st_mtime_ns, url, sorted(to), name]
        self._lock = -1
        self.transfer = str(uuid.uuid4())
        self.resumed = False
        self.kept = False
        state = state_directory()
        folder = folder or (state and state / "uploads")
        if folder is None:
            return
        self._path = folder / f"{hashlib.sha256(json.dumps(same).encode()).hexdigest()[:32]}.json"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _prune(folder)
            if self._locked():
                self._find()
                self.kept = True
        except OSError:
            pass

    def forget(self) -> None:
        """The upload ended, well or for good: the same command starts anew."""
        if self._lock >= 0:
            self._path.unlink(missing_ok=True)

    def anew(self) -> None:
        """Take a new transfer id, since the server no longer takes the remembered one."""
        self.transfer, self.resumed = str(uuid.uuid4()), False
        if self._lock >= 0:
            self._write()

    def close(self) -> None:
        """Let another process go on with it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _locked(self) -> bool:
        descriptor = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                return False
        self._lock = descriptor
        return True

    def _find(self) -> None:
        try:
            self.transfer = str(uuid.UUID(json.loads(self._path.read_bytes())["transfer"]))
            self.resumed = True
        except (OSError, ValueError, TypeError, KeyError):
            self._write()

    def _write(self) -> None:
        write_atomically(self._path, json.dumps({"transfer": self.transfer}).encode(), durable=True)


def _prune(folder: Path) -> None:
    oldest = time.time() - KEPT_DAYS * 86_400
    for path in folder.iterdir():
        try:
            if path.stat().st_mtime < oldest:
                path.unlink()
        except OSError:
            continue
