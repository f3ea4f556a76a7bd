"""What is written down beside a part: how much of it is durable, and in the end the receipt."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType

from delivery.client.files import write_atomically

RECEIPT_DAYS = 30


@dataclass(frozen=True, slots=True)
class Note:
    """What `<transfer>.json` says. `position`: bytes of the part that are durable. `state`: partial, complete, saved.

    Complete means that the digest agreed, and that the part is being moved to `path`. `claimed`: an empty file may lie
    there meanwhile, which is ours.
    """

    transfer: str
    size: int | None
    position: int = 0
    state: str = "partial"
    sha256: str | None = None
    path: str | None = None
    claimed: bool = False


KINDS: dict[str, tuple[type, ...]] = {
    "transfer": (str,),
    "size": (int, NoneType),
    "position": (int,),
    "state": (str,),
    "sha256": (str, NoneType),
    "path": (str, NoneType),
    "claimed": (bool,),
}
NEWER = frozenset({"claimed"})  # written only where they say something: earlier versions read no note that has them


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
        write_atomically(self._path, json.dumps(members).encode(), durable=durable)

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
