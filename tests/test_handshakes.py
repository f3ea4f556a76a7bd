"""Handshakes that no consumer answers: 404 for a path that nobody serves, 503 while Redis is away, and no traceback."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websockets
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.handlers.asgi import ASGIHandler
from websockets.exceptions import InvalidStatus

from delivery.routing import websocket_application, websocket_urlpatterns
from delivery.websocket import handshakes
from tests.launch.live import ROOT, clean_environment, free_port, wait_until

EXTENSION = {"websocket.http.response": {}}


async def answers(application: Any, *, path: str = "/ws/other/", extensions: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what an application sends to a handshake."""
    sent: list[dict[str, Any]] = []
    scope = {"type": "websocket", "path": path, "headers": [], "extensions": extensions, "subprotocols": []}

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await application(scope, receive, send)
    return sent


@pytest.mark.parametrize(
    "application",
    [
        websocket_application,
        ProtocolTypeRouter({"websocket": websocket_application}),
        handshakes.answered(URLRouter(websocket_urlpatterns)),  # as a site has it that adds its own
        handshakes.answered(ProtocolTypeRouter({})),
        handshakes.answered(ASGIHandler()),
    ],
    ids=["ours", "ours beside HTTP", "URLRouter", "no sockets at all", "Django alone"],
)
async def test_no_route_is_404(application: Any) -> None:
    start, body = await answers(application, extensions=EXTENSION)
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 404)
    assert b"No WebSocket" in body["body"]


async def test_a_server_that_answers_no_handshake_closes_it() -> None:
    assert await answers(websocket_application, extensions={}) == [{"type": "websocket.close"}]


async def test_faults_of_the_site_are_not_hidden() -> None:
    async def broken(*_: Any) -> None:
        raise ValueError("No such thing")

    with pytest.raises(ValueError, match="No such thing"):
        await answers(handshakes.answered(broken), extensions=EXTENSION)


async def test_a_path_cannot_forge_lines_of_a_log(caplog: pytest.LogCaptureFixture) -> None:
    await answers(websocket_application, path="/x\n12:00 ERROR forged\x1b[2J" + "y" * 5000, extensions=EXTENSION)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().isprintable()
    assert len(record.getMessage()) < 300


#: An application whose sockets are routed by Channels' own URLRouter, as a site has it that adds sockets of its own.
PLAIN = """
import os
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
from django.core.asgi import get_asgi_application
http = get_asgi_application()
from channels.routing import ProtocolTypeRouter, URLRouter
from delivery.routing import websocket_application, websocket_urlpatterns
plain = ProtocolTypeRouter({"http": http, "websocket": URLRouter(websocket_urlpatterns)})
ours = ProtocolTypeRouter({"http": http, "websocket": websocket_application})
"""
SETTINGS = "from project.settings import *\nASGI_APPLICATION = 'plain_site.plain'\n"


@contextlib.contextmanager
def serving(folder: Path, command: list[str]) -> Iterator[tuple[int, Path]]:
    """Run a web server on that site; give its port, and the file with what it says."""
    (folder / "plain_site.py").write_text(PLAIN)
    (folder / "plain_settings.py").write_text(SETTINGS)
    port, log = free_port(), folder / "log"
    environment = clean_environment(
        DELIVERY_VAR=str(folder / "var"),
        DJANGO_SETTINGS_MODULE="plain_settings",
        PYTHONPATH=f"{folder}:{ROOT}",
        PYTHONUNBUFFERED="1",
        REDIS_URL="redis://127.0.0.1:1/0",
    )
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *command, str(port)], cwd=folder, env=environment, stdout=file, stderr=file
        )
    try:
        wait_until(lambda: "Uvicorn running" in log.read_text(), what="web server")
        yield port, log
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize(
    "command",
    [
        [str(ROOT / "manage.py"), "delivery_web", "--port"],
        ["-m", "uvicorn", "plain_site:ours", "--ws", "websockets-sansio", "--port"],
        ["-m", "uvicorn", "plain_site:ours", "--ws", "websockets", "--port"],
    ],
    ids=["delivery_web before URLRouter", "uvicorn before ours", "uvicorn's older one before ours"],
)
async def test_real_servers_say_so(command: list[str], tmp_path: Path) -> None:
    with serving(tmp_path, command) as (port, log):
        with pytest.raises(InvalidStatus) as refused:
            await websockets.connect(f"ws://127.0.0.1:{port}/ws/wrong/")
        assert refused.value.response.status_code == 404
        assert "/ws/wrong/" in log.read_text()
        assert "Traceback" not in log.read_text()
        assert "delivery_web" not in command or "without completing handshake" not in log.read_text()


async def test_while_redis_is_away_clients_are_told_to_come_back(tmp_path: Path) -> None:
    """Each of them comes every few seconds: one line, no traceback."""
    with serving(tmp_path, [str(ROOT / "manage.py"), "delivery_web", "--port"]) as (port, log):
        before = log.read_text()
        assert "Redis does not answer at 127.0.0.1:1/0: no socket is served before it does" in before
        with pytest.raises(InvalidStatus) as refused:
            await websockets.connect(f"ws://127.0.0.1:{port}/ws/delivery/")
        assert refused.value.response.status_code == 503
        said = log.read_text()[len(before) :]
        assert "the channel layer does not answer (ConnectionError): 503" in said
        assert "Traceback" not in said
