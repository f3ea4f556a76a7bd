"""The `.delivery/` folder of a target directory: the client's id, and the position of each delivery.

Beside each part lies a note: how much of it is durable, and in the end the receipt.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType
from typing import Self

from delivery.client import files
from delivery.client.files import try_lock
from delivery.errors import DeliveryError

FOLDER = ".delivery"  # in a directory that is received into: what is ours
CLIENT_ID_BYTES = 64
KEPT_DAYS = 30
PRUNE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Note:
    """What `<transfer>.json` says. `position`: bytes of the part that are durable. `state`: partial, complete, saved.

    Complete means that the digest agreed, and that the part is being moved to `path`. `claimed`: an empty file may lie
    there meanwhile, which is ours. `expires`: when the server forgets the payload, ISO 8601.
    """

    transfer: str
    size: int | None
    position: int = 0
    state: str = "partial"
    sha256: str | None = None
    path: str | None = None
    claimed: bool = False
    expires: str | None = None


KINDS: dict[str, tuple[type, ...]] = {
    "transfer": (str,),
    "size": (int, NoneType),
    "position": (int,),
    "state": (str,),
    "sha256": (str, NoneType),
    "path": (str, NoneType),
    "claimed": (bool,),
    "expires": (str, NoneType),
}
NEWER = frozenset(
    {"claimed", "expires"}
)  # written only where they say something: earlier versions read no note that has them


def _sound(note: Note) -> bool:
    """Return whether a note says nothing that cannot be; a person or a full disk may have changed it."""
    if not all(isinstance(getattr(note, name), kinds) for name, kinds in KINDS.items()):
        return False
    finished = note.size is not None and note.sha256 is not None and note.path is not None
    return note.position >= 0 and (note.state == "partial" or (note.state in ("complete", "saved") and finished))


class Sidecar:
    """The JSON file at `path`, which holds the note of `transfer`. Blocking; raises `OSError`."""

    def __init__(self, path: Path, transfer: str) -> None:
        self._path = path
        self._transfer = transfer

    def read(self) -> Note | None:
        """Return what it says, None where it is not there or says nothing that can be understood."""
        try:
            members = json.loads(self._path.read_bytes())
            note = Note(**{name: members[name] for name in KINDS if name in members})
        except (FileNotFoundError, ValueError, TypeError, RecursionError):
            return None
        return note if note.transfer == self._transfer and _sound(note) else None

    def write(self, note: Note, *, durable: bool) -> None:
        """Replace what it says; a crash leaves the old or the new. `durable`: a power cut, too, leaves the new."""
        members = {name: value for name, value in asdict(note).items() if name not in NEWER or value}
        files.write_atomically(self._path, json.dumps(members).encode(), durable=durable)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def prune(folder: Path) -> None:
    """Remove what no server can ask for any more, at most once an hour: it is one look at every file in `folder`.

    These are receipts of more than 30 days, parts whose payload has expired or of which nothing came for 30 days, and
    what a crash left of a file that was being written. A part that is being saved stays. Blocks; raises nothing.
    """
    with contextlib.suppress(OSError):
        if _pruned_lately(folder / "pruned"):
            return
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                _prune_one(path)


def _pruned_lately(marker: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        if 0 <= time.time() - marker.stat().st_mtime < PRUNE_SECONDS:
            return True
    marker.touch()
    return False


def _prune_one(path: Path) -> None:
    age = time.time() - path.stat().st_mtime
    match path.suffix:
        case ".part":
            _prune_part(path, untouched=age > KEPT_DAYS * 86_400)
        case ".json":
            if age > KEPT_DAYS * 86_400 and not path.with_suffix(".part").exists():
                path.unlink()
        case files.NEW:
            if age > PRUNE_SECONDS:
                path.unlink()


def _prune_part(part: Path, *, untouched: bool) -> None:
    sidecar = Sidecar(part.with_suffix(".json"), part.stem)
    note = sidecar.read()
    saved = note is not None and note.state == "saved"
    if not (untouched or saved or (note is not None and _expired(note))):
        return
    descriptor = os.open(part, os.O_RDWR)
    try:
        if try_lock(descriptor):
            part.unlink()
            if not saved:  # else it is a receipt
                sidecar.remove()
    finally:
        os.close(descriptor)


def _expired(note: Note) -> bool:
    try:
        expires = datetime.fromisoformat(note.expires or "")
    except ValueError:
        return False
    return expires.tzinfo is not None and expires < datetime.now(UTC)


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
