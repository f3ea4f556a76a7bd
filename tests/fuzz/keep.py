"""Copies from a folder of inputs those that reach something which no smaller one does.

python -m tests.fuzz.keep tests/fuzz/found
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz import inputs

Arc = tuple[str, int, int]


def reached(data: bytes) -> set[Arc]:
    """Return the steps from line to line that an input makes in the core."""
    arcs: set[Arc] = set()
    last: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if "/delivery/protocol/" not in name:
            return None
        if event == "line":
            arcs.add((name, last.get(frame, 0), frame.f_lineno))
            last[frame] = frame.f_lineno
        return trace

    sys.settrace(trace)
    try:
        inputs.take(data)
    finally:
        sys.settrace(None)
    return arcs


def main(folder: Path) -> None:
    known: set[Arc] = set()
    inputs.CORPUS.mkdir(exist_ok=True)
    kept = [path.read_bytes() for path in inputs.CORPUS.iterdir()]
    found = [path.read_bytes() for path in folder.iterdir()]
    for data in sorted({*kept, *found}, key=lambda data: (len(data), data)):
        new = reached(data) - known
        if new:
            known |= new
            (inputs.CORPUS / hashlib.sha1(data).hexdigest()[:16]).write_bytes(data)
    print(f"{len(list(inputs.CORPUS.iterdir()))} inputs, {len(known)} steps")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
