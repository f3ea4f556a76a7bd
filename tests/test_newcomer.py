"""A newcomer forgets a line of the README: `check`, or the first start of what needs it, names what is missing."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from delivery.launch.valkey import Valkey
from tests import readme
from tests.launch.live import ROOT, clean_environment, free_port, wait_until

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's site, where nothing is missing."""
    folder = tmp_path_factory.mktemp("whole")
    shell(folder, readme.STARTED)
    for block in readme.blocks():
        block.paste(folder)
    shell(folder, *[line for line in readme.lines() if line.startswith("echo ")])
    return folder


@pytest.fixture
def site(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "site")
    return tmp_path / "site"


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in clean_environment().items() if not name.startswith("DJANGO_")}
    # Nobody answers there: no check may need Redis or the broker.
    usual = {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "REDIS_URL": "redis://127.0.0.1:1"}
    return kept | usual | variables


def shell(folder: Path, *lines: str) -> str:
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout


def start(folder: Path, command: str, *, until: str, **variables: str) -> str:
    """Start something that may go on running; return what it said up to the words `until`, or to its end."""
    log = folder / f"log-{time.monotonic_ns()}"
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["bash", "-c", f"exec python manage.py {command}"],
            cwd=folder,
            env=environment(PYTHONUNBUFFERED="1", PORT=str(free_port()), **variables),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        wait_until(lambda: until in log.read_text() or process.poll() is not None, what=f"{until!r} of {command}")
        return log.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def without(path: str, beginning: str) -> Callable[[Path], None]:
    """Return a change: the statement of a file that begins so is not there."""

    def change(folder: Path) -> None:
        lines = (folder / path).read_text().splitlines(keepends=True)
        kept = [line for line in lines if not line.startswith(beginning)]
        assert len(kept) < len(lines), beginning
        (folder / path).write_text("".join(kept))

    return change


def instead(path: str, old: str, new: str) -> Callable[[Path], None]:
    """Return a change: a file has something else in place of `old`."""

    def change(folder: Path) -> None:
        text = (folder / path).read_text()
        assert old in text, old
        (folder / path).write_text(text.replace(old, new))

    return change


def no_file(path: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).unlink()


SETTINGS = "mysite/settings.py"


def test_nothing_is_missing(site: Path) -> None:
    assert "System check identified no issues" in shell(site, "python manage.py check")


@pytest.mark.parametrize(
    ("forget", "says"),
    [
        (without(SETTINGS, 'DATABASES["default"]["OPTIONS"]'), "delivery.W013"),
        (without(SETTINGS, 'DATABASES["default"]["OPTIONS"]["init'), "delivery.W013"),
        (without(SETTINGS, "STORAGES"), "delivery.E005"),
        (instead(SETTINGS, '"STORAGE": "payloads", ', ""), "delivery.W009"),
        (instead(SETTINGS, 'BASE_DIR / "payloads"', "MEDIA_ROOT"), "MEDIA_ROOT"),
        (no_file("mysite/policy.py"), "delivery.E008"),
        (instead("mysite/policy.py", "class Policy", "class MyPolicy"), "delivery.E008"),
        (without(SETTINGS, "CHANNEL_LAYERS"), "delivery.E010"),
        (without(SETTINGS, "CELERY_BROKER_URL"), "delivery.W008"),
        (instead(SETTINGS, 'f"{REDIS}/1"', '"unix:///run/redis.sock"'), "delivery.E012"),
        (without(SETTINGS, "CELERY_BEAT_SCHEDULE"), "delivery.W012"),
        (instead(SETTINGS, '"REDIS_URL": f"{REDIS}/0"', '"REDIS_URL": "127.0.0.1:6379"'), "delivery.E009"),
        (without("mysite/__init__.py", "from mysite.celery"), "delivery.W001"),
        (without("mysite/celery.py", "app.config_from_object"), "delivery.W008"),
        (without("mysite/urls.py", "urlpatterns +="), "delivery.W011"),
        (without(SETTINGS, "INSTALLED_APPS += "), "INSTALLED_APPS"),
    ],
)
def test_check_names_what_is_missing(forget: Callable[[Path], None], says: str, site: Path) -> None:
    forget(site)
    assert says in shell(site, "python manage.py check")


@pytest.mark.parametrize(
    ("forget", "says"),
    [
        (without(SETTINGS, "ASGI_APPLICATION"), "ASGI_APPLICATION is not set"),
        (without("mysite/asgi.py", "application = ProtocolTypeRouter"), "serves no WebSockets"),
        (instead("mysite/asgi.py", ', "websocket": websocket_application', ""), "serves no WebSockets"),
        (instead("mysite/asgi.py", "ASGIStaticFilesHandler(application)", "application"), "Nobody serves static files"),
    ],
)
def test_the_web_server_names_what_its_application_lacks(forget: Callable[[Path], None], says: str, site: Path) -> None:
    forget(site)
    assert says in start(site, "delivery_web", until="Uvicorn running")


def test_the_web_server_names_what_does_not_run(site: Path) -> None:
    """It serves all the same: parts are started in any order."""
    said = start(site, "delivery_web", until="Uvicorn running", REDIS_URL="redis://:hunter2@127.0.0.1:1")
    assert "Redis does not answer at 127.0.0.1:1/0" in said
    assert "hunter2" not in said
    assert "manage.py migrate" in said
    assert "Uvicorn running on http://127.0.0.1:" in said


@pytest.mark.parametrize("command", ["delivery_worker", "delivery_beat"])
def test_the_worker_names_the_app_that_is_not_there(command: str, site: Path) -> None:
    (site / "mysite" / "__init__.py").write_text("")
    (site / "mysite" / "celery.py").unlink()
    said = start(site, command, until="ready.")
    assert "Traceback" not in said, said
    assert "mysite/celery.py" in said


def test_the_worker_names_the_tasks_that_it_does_not_know(site: Path, tmp_path: Path) -> None:
    without("mysite/celery.py", "app.autodiscover_tasks")(site)
    port = free_port()
    command = [*Valkey(socket=tmp_path / "s", directory=tmp_path).command(), "--port", str(port), "--unixsocket", ""]
    redis = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        said = start(site, "delivery_worker", until="autodiscover_tasks", REDIS_URL=f"redis://127.0.0.1:{port}")
    finally:
        redis.kill()
        redis.wait()
    assert "does not know the task delivery.store_segment" in said
