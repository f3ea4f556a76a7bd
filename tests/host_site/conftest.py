"""A rig whose processes are those of the site `hostsite`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from project.redis_urls import broker_url
from tests.going_away.rig import Process, Rig, make_template
from tests.stack import Site, site_of

HERE = Path(__file__).parent
QUEUE = "bulk"


class HostRig(Rig):
    """The state and the processes of `hostsite`.

    `queue`: what its `DELIVERY["QUEUE"]` is, empty for the default. `settings`: its module of settings.
    """

    def __init__(self, var: Path, template: Path, *, queue: str = "", settings: str = "hostsite.settings") -> None:
        self.notes = var.parent / f"{var.name}-notes"
        self.notes.mkdir()
        super().__init__(
            var,
            template,
            DJANGO_SETTINGS_MODULE=settings,
            PYTHONPATH=f"{HERE}:{HERE.parent.parent}",
            CONF_FOLDER=str(self.notes),
            HOST_DELIVERY_QUEUE=queue,
            C_FORCE_ROOT="1",  # the site uses pickle, which Celery refuses to root
        )
        self.queues = f"hostwork,{queue}" if queue else "hostwork"

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | {"HOST_BROKER_URL": broker_url(self.redis_url)}

    def manage(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "django", *arguments]

    def site_worker(self, *options: str) -> Process:
        """Start a worker as the site always did, with Celery's own command."""
        return self.command(
            "-m", "celery", "-A", "hostsite", "worker", f"--queues={self.queues}", "--loglevel=INFO", *options
        )


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_template(tmp_path_factory.mktemp("host") / "template")


@pytest.fixture
def new_rig(tmp_path: Path, template: Path) -> Iterator[Callable[..., HostRig]]:
    """Return a function that makes the test's rig."""
    made: list[HostRig] = []

    def new(**options: Any) -> HostRig:
        made.append(HostRig(tmp_path / "rig", template, **options))
        made[0].wait_redis()
        return made[0]

    yield new
    for rig in made:
        rig.close()


@pytest.fixture(params=["", QUEUE], ids=["default queue", "own queue"])
def rig(request: pytest.FixtureRequest, new_rig: Callable[..., HostRig]) -> HostRig:
    return new_rig(queue=request.param)


@pytest.fixture
def site(rig: HostRig, django_db_blocker: Any) -> Iterator[Site]:
    with django_db_blocker.unblock(), site_of(rig) as site:  # type: ignore[arg-type]
        yield site
