"""Replays every input that the fuzzer kept because it reached something new."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import inputs

KEPT = sorted(inputs.CORPUS.iterdir())


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name)
def test_nothing_but_a_violation_escapes(path: Path) -> None:
    inputs.take(path.read_bytes())


def test_the_corpus_reaches_a_whole_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    monkeypatch.setattr(inputs.Connection, "done", lambda *args, **members: done.append(members))
    monkeypatch.setattr(inputs.Connection, "tick", lambda *args: [])
    for path in KEPT:
        inputs.take(path.read_bytes())
    assert done
