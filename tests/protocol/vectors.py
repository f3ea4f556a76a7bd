"""The vectors that Python and JavaScript share: `tests/vectors/*.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "vectors"


def load(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def name_of(vector: dict[str, Any]) -> str:
    """Name a vector in pytest's output."""
    return vector["name"]


def text_of(vector: dict[str, Any]) -> str:
    """Return the text of a message vector, whose repetitions are written short."""
    text = vector["text"]
    if isinstance(text, str):
        return text
    return "".join(part if isinstance(part, str) else part["repeat"] * part["times"] for part in text)
