"""Who ends a process by force leaves it the time that it may take by itself."""

from __future__ import annotations

import re
from pathlib import Path

from delivery.conf import Settings
from delivery.launch import stack
from delivery.management.commands.delivery_worker import Command
from delivery.websocket import server

ROOT = Path(__file__).parents[2]
WEB_SECONDS = Settings().drain_grace + server.LAST_SECONDS
#: `--end-after`; 2 s of telling before it, twice 2 s of asking Redis after it, and a look of a second.
WORKER_SECONDS = Command().create_parser("manage.py", "delivery_worker").get_default("end_after") + 7


def compose_grace(service: str) -> float:
    text = (ROOT / "docker-compose.yml").read_text()
    section = re.split(r"^  \w+:$", text.split(f"\n  {service}:\n", 1)[1], flags=re.M)[0]
    number, unit = re.search(r"stop_grace_period: (\d+)([sm])", section).groups()  # type: ignore[union-attr]
    return int(number) * (60 if unit == "m" else 1)


def test_the_launcher_waits_long_enough() -> None:
    assert stack.GRACE["web"] + Settings().drain_grace > WEB_SECONDS
    assert stack.GRACE["worker"] > WORKER_SECONDS


def test_compose_waits_long_enough() -> None:
    assert compose_grace("web") > WEB_SECONDS
    assert compose_grace("worker") > WORKER_SECONDS
