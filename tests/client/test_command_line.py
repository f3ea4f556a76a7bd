from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from delivery.client.__main__ import main
from tests.client.conftest import eventually
from tests.client.server import CoreServer

DATA = os.urandom(8 * 1_048_576 + 12_345)


class Command:
    """`python -m delivery.client` as a process of its own; its JSON lines in `events`."""

    def __init__(self, server: CoreServer, *arguments: str) -> None:
        self._arguments = [*arguments, "--url", server.url, "--json"]
        self.events: list[dict[str, Any]] = []
        self.errors = ""

    async def __aenter__(self) -> Command:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "delivery.client",
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self._reading = asyncio.ensure_future(self._read())
        return self

    async def __aexit__(self, *error: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.status()

    async def _read(self) -> None:
        async for line in self.process.stdout:
            self.events.append(json.loads(line))
        self.errors = (await self.process.stderr.read()).decode()

    async def status(self) -> int:
        await asyncio.wait_for(self._reading, 30)
        return await self.process.wait()

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "scan.tif"
    path.write_bytes(DATA)
    return path


async def test_send_prints_the_digest_and_a_summary(server: CoreServer, file: Path) -> None:
    async with Command(server, "send", str(file), "--to", "user:alice", "--to", "group:ops") as command:
        assert await command.status() == 0, command.errors
    (done,) = command.named("done")
    (stored,) = server.uploads.values()
    assert (done["name"], done["size"], done["sha256"]) == ("scan.tif", len(DATA), stored.sha256)
    assert command.events[-1]["event"] == "summary"
    assert command.events[-1]["ok"] is True
    assert stored.offer.to == ("user:alice", "group:ops")


async def test_send_reads_standard_input(server: CoreServer) -> None:
    async with Command(server, "send", "-", "--name", "notes.txt") as command:
        command.process.stdin.write(b"from a pipe")
        command.process.stdin.close()
        assert await command.status() == 0, command.errors
    (stored,) = server.uploads.values()
    assert (bytes(stored.data), stored.offer.name) == (b"from a pipe", "notes.txt")


async def _held(server: CoreServer, condition: Callable[[], object]) -> None:
    """Have the server store nothing more as soon as `condition` holds."""
    await eventually(condition, seconds=30)
    for session in server.sessions:
        session.frozen = True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_after_a_signal_the_same_command_goes_on(server: CoreServer, file: Path, number: int) -> None:
    server.window = server.segment = 262_144
    server.uploads.clear()
    async with Command(server, "send", str(file)) as command:
        await _held(server, lambda: any(len(stored.data) > 2_000_000 for stored in server.uploads.values()))
        command.process.send_signal(number)
        assert await command.status() == (130 if number != signal.SIGKILL else -9)
    (stored,) = server.uploads.values()
    kept = len(stored.data)
    async with Command(server, "send", str(file)) as command:
        assert await command.status() == 0, command.errors
    assert len(server.uploads) == 1
    assert bytes(stored.data) == DATA
    assert command.events[-1]["sent_bytes"] == len(DATA) - kept
    assert command.events[-1]["resumes"] == 1
    async with Command(server, "send", str(file)) as command:  # done means done: sent anew
        assert await command.status() == 0
    assert len(server.uploads) == 2


async def test_a_transfer_that_is_gone_at_the_server_begins_anew(server: CoreServer, file: Path) -> None:
    server.window = server.segment = 262_144
    async with Command(server, "send", str(file)) as command:
        await _held(server, lambda: any(len(stored.data) > 1_000_000 for stored in server.uploads.values()))
        command.process.kill()
    (gone,) = server.uploads
    server.answer = lambda offer: {"code": "expired"} if offer.transfer == gone else None
    async with Command(server, "send", str(file)) as command:
        assert await command.status() == 0, command.errors
    assert any(bytes(stored.data) == DATA for stored in server.uploads.values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
async def test_receive_goes_on_in_a_new_process(server: CoreServer, tmp_path: Path, number: int) -> None:
    data = os.urandom(24 * 1_048_576 + 99)
    server.send_until = 20 * 1_048_576
    durable = 16 * 1_048_576  # what is written after it is made durable later, and lost by SIGKILL
    waiting = server.offer(data)
    directory = tmp_path / "in"
    async with Command(server, "receive", "--dir", str(directory), "--once") as command:
        parts = directory / ".delivery"
        await eventually(lambda: any(part.stat().st_size == server.send_until for part in parts.glob("*.part")), 30)
        await eventually(
            lambda: any(json.loads(note.read_text())["position"] >= durable for note in parts.glob("*.json"))
        )
        command.process.send_signal(number)
        assert await command.status() == (130 if number == signal.SIGINT else -9)
    server.send_until = None
    assert not waiting.done
    assert list(directory.glob("*.tif")) == []
    async with Command(server, "receive", "--dir", str(directory), "--once") as command:
        assert await command.status() == 0, command.errors
    (done,) = command.named("done")
    assert done["path"] == str(directory / "scan.tif")
    assert (directory / "scan.tif").read_bytes() == data
    kept = 20 * 1_048_576 if number == signal.SIGINT else durable
    assert command.events[-1]["received_bytes"] <= len(data) - kept
    assert command.events[-1]["resumes"] == 1
    assert len({hello.client for hello in server.hellos}) == 1
    assert waiting.done


async def test_receive_stops_after_a_quiet_time(server: CoreServer, tmp_path: Path) -> None:
    server.offer(b"one")
    async with Command(server, "receive", "--dir", str(tmp_path / "in"), "--timeout", "0.3") as command:
        assert await command.status() == 0
    assert len(command.named("done")) == 1
    async with Command(server, "receive", "--dir", str(tmp_path / "in"), "--timeout", "0.3", "--once") as command:
        assert await command.status() == 1
    assert "0 of 1" in command.named("failed")[0]["error"]


@pytest.mark.parametrize("named", [True, False])
async def test_a_name_that_cannot_be_decoded_is_sent_as_a_printable_one(
    server: CoreServer, tmp_path: Path, named: bool
) -> None:
    """Linux keeps any bytes as a name. The files before and after it go as well."""
    names = [b"a.txt", b"b\xff.txt", b"z.txt"]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(name)
    files = [str(tmp_path / os.fsdecode(name)) for name in (names[1:2] if named else names)]
    async with Command(server, "send", *files, *(["--name", os.fsdecode(names[1])] if named else [])) as command:
        assert await command.status() == 0, command.errors
    received = {stored.offer.name: bytes(stored.data) for stored in server.uploads.values()}
    replaced = {"b\N{REPLACEMENT CHARACTER}.txt": names[1]}
    assert received == (replaced if named else {"a.txt": names[0], **replaced, "z.txt": names[2]})
    assert {event["name"] for event in command.named("done")} == set(received)


async def test_a_file_that_is_gone_fails_alone(server: CoreServer, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "z.txt"):
        (tmp_path / name).write_bytes(b"x" * 10)
    files = [str(tmp_path / name) for name in ("a.txt", "b.txt", "z.txt")]
    server.before_welcome = (tmp_path / "b.txt").unlink
    async with Command(server, "send", *files) as command:
        assert await command.status() == 1
    assert [event["name"] for event in command.named("failed")] == ["b.txt"]
    assert {event["name"] for event in command.named("done")} == {"a.txt", "z.txt"}


async def test_a_refusal_is_status_1_with_its_code(server: CoreServer, file: Path) -> None:
    server.answer = lambda offer: {"code": "forbidden"}
    async with Command(server, "send", str(file)) as command:
        assert await command.status() == 1
    assert command.named("failed")[0]["code"] == "forbidden"


async def test_a_login_that_is_refused_says_what_to_do(server: CoreServer, file: Path) -> None:
    server.token = "secret"
    async with Command(server, "send", str(file), "--token", "wrong") as command:
        assert await command.status() == 1
    assert "manage.py delivery_token USER" in command.named("failed")[0]["error"]
    assert "wrong" not in json.dumps(command.events)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["send"],
        ["send", "/no/such/file"],
        ["send", "/"],
        ["send", __file__, __file__, "--name", "x"],
        ["send", __file__, "--chunk-size", "5000"],
        ["send", __file__, "--url", "http://host/"],
        ["receive", "--count", "0"],
        ["receive", "--timeout", "soon"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["send", "--help"], ["receive", "--help"]])
def test_help_says_where_the_login_comes_from(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    assert "DELIVERY_TOKEN" in capsys.readouterr().out
