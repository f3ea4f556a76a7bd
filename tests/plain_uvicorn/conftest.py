"""Everything in here runs on uvicorn's own protocols: what a version of uvicorn or websockets without our names gets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from delivery.websocket import internals
from tests.going_away.conftest import alice, connect, site, template
from tests.going_away.rig import Rig, rigs

__all__ = ["PLAIN", "alice", "connect", "rig", "site", "template"]

PLAIN = {internals.PLAIN: "1"}


@pytest.fixture
def rig(tmp_path: Path, template: Path) -> Iterator[Rig]:
    """As in tests/going_away, its web processes with uvicorn's own protocols."""
    with rigs(tmp_path, template) as new:
        yield new(**PLAIN)
