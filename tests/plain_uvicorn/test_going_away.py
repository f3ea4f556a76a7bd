"""A web process goes away on uvicorn's own protocols as it does on ours; and says at its start what is lost."""

from __future__ import annotations

from tests.going_away.rig import Rig
from tests.going_away.test_web import *  # noqa: F403 - the same tests, on this folder's rig


def test_one_warning_says_what_is_lost(rig: Rig) -> None:
    web = rig.web()
    web.wait_ready()
    said = [line for line in web.log().splitlines() if "served by uvicorn's own protocols" in line]
    assert len(said) == 1
    assert "DELIVERY_PLAIN_UVICORN is set" in said[0]
    assert "Lost: speed" in said[0]
