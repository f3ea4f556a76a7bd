"""Our protocols build on names inside uvicorn and websockets; a version without them is served all the same."""

from __future__ import annotations

import logging

import pytest
import websockets

from delivery.websocket import internals
from tests.launch.test_guards import serving, texts


def test_what_is_installed_has_every_name() -> None:
    assert internals.missing() == []


def test_a_name_that_is_gone_is_found() -> None:
    class Protocol:
        there = 1

        def __init__(self) -> None:
            self.kept = 2

    assert list(internals.absent({Protocol: ("there", "kept", "gone")})) == [f"{__name__}.{Protocol.__qualname__}.gone"]


async def test_an_unknown_version_is_served_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(internals, "SOCKET", (*internals.SOCKET, "renamed"))
    async with serving(texts) as port, websockets.connect(f"ws://127.0.0.1:{port}/", compression=None) as client:
        assert await client.recv() == ""
    (warning,) = [
        record for record in caplog.records if record.levelno == logging.WARNING and record.name.startswith("delivery")
    ]
    assert "WebSocketsSansIOProtocol.renamed" in warning.message
