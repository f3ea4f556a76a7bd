"""A newcomer's first site: the README's own lines, in an empty folder, with nothing installed but what they install."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from delivery.launch.valkey import Valkey
from tests import readme
from tests.launch.live import free_port, wait_until
from tests.wheel.conftest import Installed, environment, run

READY = {"delivery_web": "Uvicorn running", "delivery_worker": "ready", "delivery_beat": "beat: Starting"}


class Newcomer:
    """An empty folder, a shell, and terminals for what goes on running."""

    def __init__(self, folder: Path, server: Installed, redis: int) -> None:
        self.folder = folder
        self.port = free_port()
        self.variables = {
            "PATH": server.path,
            "REDIS_URL": f"redis://127.0.0.1:{redis}",
            "PORT": str(self.port),
            "DELIVERY_URL": f"ws://127.0.0.1:{self.port}/ws/delivery/",
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def type(self, *lines: str, **variables: str) -> str:
        """Run lines in one shell, which stops at the first that fails."""
        return run("bash", "-ec", "\n".join(lines), cwd=self.folder, **self.variables | variables)

    def open_terminal(self, line: str) -> None:
        name = re.match(readme.DAEMON, line).group(1)  # type: ignore[union-attr]
        with (self.folder / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                ["bash", "-c", f"exec {line}"],
                cwd=self.folder,
                env=environment(**self.variables),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def wait_ready(self) -> None:
        def ready() -> bool:
            for name, process in self._running.items():
                assert process.poll() is None, self.said(name)
            return all(READY[name] in self.said(name) for name in self._running if name != "delivery_beat")

        wait_until(ready, what="web server and worker", seconds=60)

    def close(self) -> None:
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self._running.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A Redis on a port of 127.0.0.1, as a newcomer has it."""
    folder, port = tmp_path_factory.mktemp("redis"), free_port()
    command = [*Valkey(socket=folder / "s", directory=folder).command(), "--port", str(port), "--unixsocket", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(answers, what="Redis")
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def newcomer(server: Installed, redis: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    """Somebody who has typed all lines up to those that go on running, and started these."""
    newcomer = Newcomer(tmp_path_factory.mktemp("newcomer"), server, redis)
    try:
        newcomer.type(readme.STARTED)
        for block in readme.blocks():
            block.paste(newcomer.folder)
        before, _ = readme.around_daemons()
        said = newcomer.type(*before)
        assert "System check identified no issues" in said, said
        assert "WARNING" not in said, said
        for line in readme.daemons():
            newcomer.open_terminal(line)
        newcomer.wait_ready()
        yield newcomer
    finally:
        newcomer.close()


def test_the_readme_names_both_extras() -> None:
    assert "pip install 'PATH_TO_THIS_REPOSITORY[server,client]'" in readme.README


def test_its_site_moves_a_file_at_the_first_try(newcomer: Newcomer, client: Installed) -> None:
    """Each end from an environment that has nothing but its extra: the server's needs no more, nor does the client's."""
    data = os.urandom(3 * 1024 * 1024 + 5)
    (newcomer.folder / "FILE").write_bytes(data)
    _, after = readme.around_daemons()
    assert any(" send FILE " in line for line in after)
    ours = [
        line.replace("python -m delivery.client", f"{shlex.quote(str(client.python))} -m delivery.client")
        for line in after
    ]
    newcomer.type(*ours)
    assert (newcomer.folder / "received" / "FILE").read_bytes() == data


def test_what_it_says_while_it_starts_is_no_warning(newcomer: Newcomer) -> None:
    for name in ("delivery_web", "delivery_worker", "delivery_beat"):
        said = newcomer.said(name)
        assert not re.search(r"WARN|ERROR|Traceback|\(delivery\.", said), said


def test_beat_starts_the_sweeper(newcomer: Newcomer) -> None:
    wait_until(lambda: "delivery.sweep" in newcomer.said("delivery_worker"), what="sweep", seconds=60)


def test_the_admin_has_its_style_sheets(newcomer: Newcomer) -> None:
    """Under ASGI, without runserver."""
    page = newcomer.type(f"curl -sf http://127.0.0.1:{newcomer.port}/admin/login/")
    (sheet,) = re.findall(r'href="(/static/admin/css/base\.[^"]*css)"', page)
    assert "body" in newcomer.type(f"curl -sf http://127.0.0.1:{newcomer.port}{sheet}")


def test_a_payload_has_a_url(newcomer: Newcomer) -> None:
    code = "from delivery import deliver\nprint(deliver(b'hello', name='hello.txt').url())"
    path = newcomer.type(f"python manage.py shell --command {shlex.quote(code)}").strip().splitlines()[-1]
    assert newcomer.type(f"curl -sf http://127.0.0.1:{newcomer.port}{path}") == "hello"


def test_payloads_lie_in_the_private_place(newcomer: Newcomer) -> None:
    code = "from delivery import deliver; deliver(bytes(200_000), name='x')"
    newcomer.type(f"python manage.py shell --command {shlex.quote(code)}")
    assert [path for path in (newcomer.folder / "payloads").rglob("*") if path.is_file()]
    assert {path.name for path in newcomer.folder.iterdir() if path.is_dir()} <= {"mysite", "payloads", "received"}
