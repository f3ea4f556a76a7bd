"""`manage.py up`, from an empty directory to a stack that answers, and through the loss of each of its parts."""

from __future__ import annotations

import http.cookiejar
import os
import re
import signal
import stat
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from delivery.launch import valkey
from tests.launch.live import LiveStack, alive, manage, wait_until


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveStack]:
    stack = LiveStack(tmp_path_factory.mktemp("up") / "var", "--workers=2", "--concurrency=1")
    try:
        yield stack.wait_ready()
    finally:
        stack.stop()


def test_page_says_what_this_is(stack: LiveStack) -> None:
    page = stack.get()
    assert "Large payloads over WebSockets" in page
    assert f"--url ws://127.0.0.1:{stack.port}/ws/delivery/" in page
    assert str(stack.var) not in page


def test_admin_has_its_css(stack: LiveStack) -> None:
    assert "--primary" in stack.get("static/admin/css/base.css")


def test_superuser_logs_in_with_the_password_of_the_file(stack: LiveStack) -> None:
    passwords = dict(line.split() for line in (stack.var / "passwords").read_text().splitlines())
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
    form = browser.open(stack.url + "admin/login/").read().decode()
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form)
    assert token is not None
    fields = {"username": "admin", "password": passwords["admin"], "csrfmiddlewaretoken": token[1], "next": "/admin/"}
    answer = browser.open(stack.url + "admin/login/", urllib.parse.urlencode(fields).encode())
    assert "Log out" in answer.read().decode()


def test_nothing_that_the_stack_wrote_can_be_read_by_others(stack: LiveStack) -> None:
    found = [stack.var, *stack.var.rglob("*")]
    assert {"db.sqlite3", "secret_key", "passwords", "pids.json"} <= {path.name for path in found}
    assert [str(path) for path in found if path.stat().st_mode & 0o077] == []


def test_passwords_are_private_and_named(stack: LiveStack) -> None:
    path = stack.var / "passwords"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [line.split()[0] for line in path.read_text().splitlines()] == ["alice", "bob", "carol", "admin"]
    assert stack.said(rf"passwords +{re.escape(str(path))}$")


def test_says_how_to_send_and_receive(stack: LiveStack) -> None:
    token = rf"DELIVERY_TOKEN=\$\(DELIVERY_VAR={re.escape(str(stack.var))} \S+ manage.py delivery_token"
    url = rf"--url ws://\S+:{stack.port}/ws/delivery/$"
    assert stack.said(rf"{token} alice\) \S+ -m delivery.client send FILE --to user:bob {url}")
    assert stack.said(rf"{token} bob\) \S+ -m delivery.client receive --dir received {url}")


def test_other_commands_find_the_stack_by_its_directory(stack: LiveStack) -> None:
    answer = manage("delivery_token", "alice", DELIVERY_VAR=str(stack.var))
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split()


def test_settings_of_other_commands_name_the_embedded_redis(stack: LiveStack) -> None:
    answer = manage(
        "shell", "-v0", "-c", "from delivery import conf; print(conf.current().redis_url)", DELIVERY_VAR=str(stack.var)
    )
    assert answer.stdout.split()[-1] == f"unix://{stack.var}/valkey.sock?db=0"


def test_pids_name_living_processes_of_each_kind(stack: LiveStack) -> None:
    pids = stack.pids()
    assert {kind: len(numbers) for kind, numbers in pids.items()} == {"web": 1, "worker": 2, "redis": 1}
    assert all(alive(pid) for numbers in pids.values() for pid in numbers)


def test_each_part_has_a_session_of_its_own(stack: LiveStack) -> None:
    assert all(os.getsid(pid) == pid for pid in stack.all_pids())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_malloc_settings_reach_each_part(stack: LiveStack) -> None:
    for pid in stack.all_pids():
        assert b"MALLOC_MMAP_THRESHOLD_=" in Path(f"/proc/{pid}/environ").read_bytes()


def test_second_launcher_on_the_directory_is_refused(stack: LiveStack) -> None:
    answer = manage("up", f"--var={stack.var}")
    assert answer.returncode == 1
    assert f"in use by `manage.py up`, process {stack.process.pid}" in answer.stderr
    assert stack.answers()


def test_terminated_web_process_is_started_again(stack: LiveStack) -> None:
    [pid] = stack.pids()["web"]
    os.kill(pid, signal.SIGTERM)
    [successor] = stack.wait_replaced("web", pid)
    wait_until(stack.answers, what="answer")
    assert alive(successor)
    assert stack.said(r"^up +\| web ended \(exit status 0\); starting it again")


def test_only_the_terminated_worker_is_started_again(stack: LiveStack) -> None:
    first, second = stack.pids()["worker"]
    os.kill(first, signal.SIGTERM)
    wait_until(lambda: len(set(stack.pids()["worker"]) - {first, second}) == 1, what="new worker")
    assert second in stack.pids()["worker"]
    assert stack.said(r"worker: Warm shutdown")


def test_killed_redis_is_started_again(stack: LiveStack) -> None:
    [pid] = stack.pids()["redis"]
    os.kill(pid, signal.SIGKILL)
    stack.wait_replaced("redis", pid)
    assert stack.said(r"^up +\| redis ended \(killed by SIGKILL\); starting it again")


def test_sigterm_stops_web_workers_beat_and_redis_in_this_order(tmp_path: Path) -> None:
    stack = LiveStack(tmp_path / "var").wait_ready()
    pids = stack.all_pids()
    assert stack.stop() == 0
    assert stack.pids() == {"web": [], "worker": [], "redis": []}
    assert not any(alive(pid) for pid in pids)
    marks = ["web .*Finished server process", "worker1 .*Warm shutdown", "redis .*ready to exit", "up .*stopped"]
    places = [re.search(f"^{mark}", stack.log(), re.MULTILINE) for mark in marks]
    starts = [place.start() for place in places if place]
    assert len(starts) == len(marks)
    assert starts == sorted(starts)


def test_redis_of_the_environment_is_used_as_it_is(tmp_path: Path) -> None:
    server = valkey.Valkey(socket=tmp_path / "own.sock", directory=tmp_path)
    with subprocess.Popen(server.command(), stdout=subprocess.DEVNULL) as redis:
        try:
            wait_until(server.socket.exists, what="Valkey")
            stack = LiveStack(tmp_path / "var", REDIS_URL=server.url).wait_ready()
            assert stack.pids()["redis"] == []
            assert not (stack.var / "redis.url").exists()
            assert stack.stop() == 0
            assert redis.poll() is None
        finally:
            redis.terminate()


def test_sigterm_while_starting_stops_what_has_been_started(tmp_path: Path) -> None:
    stack = LiveStack(tmp_path / "var")
    wait_until(lambda: (stack.var / "pids.json").exists() and stack.pids()["redis"], what="Valkey")
    pids = stack.all_pids()
    assert stack.stop() == 0
    assert not any(alive(pid) for pid in pids)
