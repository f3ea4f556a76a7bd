"""What is written down beside a part: how much of it is durable, and in the end the receipt."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from delivery.client.files import write_atomically

RECEIPT_DAYS = 30


@dataclass(frozen=True, slots=True)
class Note:
    """What `<transfer>.json` says. `position`: bytes of the part that are durable. `state`: partial, complete, saved.

    Complete means that the digest agreed, and that the part is being moved to `path`.
    """

    transfer: str
    size: int | None
    position: int = 0
    state: str = "partial"
    sha256: str | None = None
    path: str | None = None


class Sidecar:
    """The JSON file at `path`, which holds the note of `transfer`. Blocking; raises `OSError`."""

    def __init__(self, path: Path, transfer: str) -> None:
        self._path = path
        self._transfer = transfer

    def read(self) -> Note | None:
        """Return what it says, None where it is not there or says nothing that can be understood."""
        try:
            note = Note(**json.loads(self._path.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return note if note.transfer == self._transfer and note.position >= 0 else None

    def write(self, note: Note, *, durable: bool) -> None:
        """Replace what it says; a crash leaves the old or the new. `durable`: a power cut, too, leaves the new."""
        write_atomically(self._path, json.dumps(asdict(note)).encode(), durable=durable)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def prune(folder: Path) -> None:
    """Remove receipts that no server can ask for any more."""
    oldest = time.time() - RECEIPT_DAYS * 86_400
    for sidecar in folder.glob("*.json"):
        try:
            if sidecar.stat().st_mtime < oldest and not sidecar.with_suffix(".part").exists():
                sidecar.unlink()
        except OSError:
            continue
