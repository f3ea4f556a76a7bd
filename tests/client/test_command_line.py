from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from delivery.client.cli.main import main
from tests.client.conftest import eventually
from tests.client.proxy import Proxy
from tests.client.server import CoreServer

DATA = os.urandom(8 * 1_048_576 + 12_345)


class Command:
    """`python -m delivery.client` as a process of its own; its JSON lines in `events`."""

    def __init__(self, server: CoreServer, *arguments: str, json: bool = True, **variables: str) -> None:
        self._arguments = [*arguments, *([] if "--url" in arguments else ["--url", server.url])]
        self._arguments += ["--json"] if json else []
        self._environment = {**os.environ, **variables}
        self.events: list[dict[str, Any]] = []
        self.errors = ""

    async def __aenter__(self) -> Command:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "delivery.client",
            *self._arguments,
            env=self._environment,
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
        async def errors() -> None:
            while data := await self.process.stderr.read(65_536):
                self.errors += data.decode()

        reading = asyncio.ensure_future(errors())
        async for line in self.process.stdout:
            self.events.append(json.loads(line))
        await reading

    async def status(self) -> int:
        await asyncio.wait_for(self._reading, 30)
        return await self.process.wait()

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]


async def run(server: CoreServer, *arguments: str, **variables: str) -> tuple[int, str]:
    """Run a command to its end; return its status and what a person reads."""
    async with Command(server, *arguments, json=False, **variables) as command:
        return await command.status(), command.errors


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


async def test_send_reads_a_named_pipe(server: CoreServer, tmp_path: Path) -> None:
    """What a shell makes of `send <(command)`."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    async with Command(server, "send", str(pipe)) as command:
        await asyncio.to_thread(pipe.write_bytes, b"from a pipe")
        assert await command.status() == 0, command.errors
    (stored,) = server.uploads.values()
    assert bytes(stored.data) == b"from a pipe"


async def test_a_close_for_good_is_told_once(server: CoreServer) -> None:
    server.token = "another"
    status, errors = await run(server, "send", __file__, "--token", "wrong")
    assert (status, errors.count("\n"), errors[:12]) == (1, 1, "failed: 4401")


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
    async with Command(server, "receive", "--dir", str(tmp_path / "in"), "--timeout", "2") as command:
        assert await command.status() == 0
    assert len(command.named("done")) == 1
    async with Command(server, "receive", "--dir", str(tmp_path / "in"), "--timeout", "2", "--once") as command:
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


@pytest.fixture
def nowhere() -> Iterator[str]:
    """The URL of a port on which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"ws://127.0.0.1:{unused.getsockname()[1]}/ws/delivery/"


@pytest.mark.parametrize("arguments", [["send", __file__], ["receive"], ["receive", "--once"]])
async def test_timeout_counts_from_the_start_and_names_the_last_reason(
    arguments: list[str], server: CoreServer, nowhere: str, tmp_path: Path
) -> None:
    into = ["--dir", str(tmp_path)] if arguments[0] == "receive" else []
    began = time.monotonic()
    async with Command(server, *arguments, *into, "--timeout", "1", "--url", nowhere) as command:
        assert await command.status() == 1
    assert time.monotonic() - began < 15
    assert f"no progress for 1 s: cannot connect to {nowhere}: Connection refused" in command.events[-2]["error"]
    assert command.events[-1]["ok"] is False


async def test_timeout_ends_a_delivery_that_does_not_move(server: CoreServer, tmp_path: Path) -> None:
    server.send_until = 1_048_576
    server.offer(DATA)
    # Longer than the 2 s after which the client stores, and tells of, less than a segment.
    async with Command(server, "receive", "--dir", str(tmp_path), "--timeout", "4") as command:
        assert await command.status() == 1
    assert command.events[-2]["error"] == "no progress for 4 s; the same command goes on where it was"


async def test_timeout_ends_an_upload_that_does_not_move_and_the_same_command_goes_on(
    server: CoreServer, file: Path
) -> None:
    server.window = server.segment = 262_144
    async with Command(server, "send", str(file), "--timeout", "2") as command:
        await _held(server, lambda: any(len(stored.data) > 1_000_000 for stored in server.uploads.values()))
        assert await command.status() == 1
    assert command.events[-2]["error"] == "no progress for 2 s; the same command goes on where it was"
    async with Command(server, "send", str(file), "--timeout", "20") as command:
        assert await command.status() == 0
    assert len(server.uploads) == 1


async def test_timeout_names_what_the_server_said(server: CoreServer, file: Path) -> None:
    server.answer = lambda offer: {"code": "busy", "retry_after": 0.2}
    async with Command(server, "send", str(file), "--timeout", "2") as command:
        assert await command.status() == 1
    assert (
        command.events[-2]["error"]
        == "no progress for 2 s: the server says busy: nobody can take this now, try again later"
    )


async def test_timeout_does_not_count_what_the_producer_takes(server: CoreServer) -> None:
    server.segment = 262_144  # stored as it comes: what is unacked is not the producer's time
    async with Command(server, "send", "-", "--timeout", "1") as command:
        await eventually(lambda: server.offers, 20)
        for _ in range(3):
            command.process.stdin.write(b"x" * 300_000)
            await asyncio.sleep(1.5)  # a pause longer than the timeout: the time itself is what is tested
        command.process.stdin.close()
        assert await command.status() == 0, command.events
    (stored,) = server.uploads.values()
    assert len(stored.data) == 900_000


async def test_timeout_counts_while_there_is_no_connection_although_the_producer_waits(server: CoreServer) -> None:
    async with Command(server, "send", "-", "--timeout", "2") as command:
        command.process.stdin.write(b"x" * 300_000)
        await eventually(lambda: server.offers, 20)
        await server.stop()
        assert await command.status() == 1
    assert "cannot connect" in command.events[-2]["error"]


async def test_a_reader_that_goes_ends_a_command_that_waits(server: CoreServer, tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m delivery.client receive --dir '{tmp_path}' --url {server.url} --json"
    process = await asyncio.create_subprocess_shell(
        f'bash -c "{command} | head -n 1; exit \\${{PIPESTATUS[0]}}"',
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 20)
    assert json.loads(output)["event"] == "connected"
    assert (process.returncode, errors) == (141, b"")


@pytest.mark.parametrize("options", [["--json"], []])
async def test_a_reader_that_goes_ends_a_command_that_works(
    options: list[str], server: CoreServer, tmp_path: Path
) -> None:
    for number in range(300):
        server.offer(b"x" * 10_000, name=f"{number}.bin")
    read_end, write_end = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "delivery.client", "receive", "--dir", str(tmp_path), "--url", server.url, *options),
        stdout=write_end if options else asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL if options else write_end,
    )
    os.close(write_end)
    await asyncio.to_thread(os.read, read_end, 10)
    os.close(read_end)
    assert await asyncio.wait_for(process.wait(), 20) == 141


async def test_a_second_interrupt_ends_at_once(server: CoreServer, proxy: Proxy, file: Path) -> None:
    server.window = server.segment = 262_144
    async with Command(server, "send", str(file), "--url", proxy.url) as command:
        await _held(server, lambda: any(len(stored.data) > 1_000_000 for stored in server.uploads.values()))
        proxy.black_hole = True  # nobody answers the close
        command.process.send_signal(signal.SIGINT)
        await asyncio.sleep(0.2)
        assert command.process.returncode is None
        command.process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert await command.status() == 130
        assert time.monotonic() - began < 1.5


async def test_stopped_promises_to_go_on_only_where_something_can(
    server: CoreServer, file: Path, nowhere: str, tmp_path: Path
) -> None:
    server.window = server.segment = 262_144
    into = str(tmp_path / "in")

    async def stopped(*arguments: str, when: Callable[[Command], object]) -> str:
        async with Command(server, *arguments, json=False) as command:
            await eventually(lambda: when(command), 20)
            command.process.send_signal(signal.SIGINT)
            assert await command.status() == 130
            return command.errors.splitlines()[-1]

    tried = lambda command: "cannot connect" in command.errors  # noqa: E731
    assert await stopped("send", str(file), "--url", nowhere, when=tried) == "stopped"
    assert await stopped("receive", "--dir", into, when=lambda command: "waiting for" in command.errors) == "stopped"
    stored = lambda command: any(len(upload.data) > 100_000 for upload in server.uploads.values())  # noqa: E731
    server.before_done = lambda: False
    async with Command(server, "send", "-", json=False) as command:
        command.process.stdin.write(b"x" * 600_000)
        await eventually(lambda: stored(command), 20)
        command.process.send_signal(signal.SIGINT)
        assert await command.status() == 130
        assert command.errors.splitlines()[-1] == "stopped"
    server.uploads.clear()
    went_on = await stopped("send", str(file), when=lambda command: stored(command) and _freeze(server))
    assert went_on == "stopped; the same command goes on where it was"


def _freeze(server: CoreServer) -> bool:
    for session in server.sessions:
        session.frozen = True
    return True


async def test_receive_says_who_it_is_and_that_it_waits(server: CoreServer, tmp_path: Path) -> None:
    server.groups = ("ops",)
    status, errors = await run(server, "receive", "--dir", str(tmp_path), "--group", "ops", "--timeout", "2")
    assert (status, errors) == (
        0,
        f"connected as user:1 and group:ops; waiting for deliveries, saved in {tmp_path} (Ctrl-C ends it)\n"
        "nothing more came for 2 s\n",
    )


async def test_receive_for_a_group_that_is_refused_fails(server: CoreServer, tmp_path: Path) -> None:
    server.groups = ("ops",)
    arguments = ["receive", "--dir", str(tmp_path), "--group", "ops", "--group", "board"]
    assert await run(server, *arguments) == (1, "failed: the site has no such group, or you are not in it: board\n")


async def test_a_refused_address_is_named(server: CoreServer) -> None:
    server.answer = lambda offer: {"code": "forbidden"}
    status, errors = await run(server, "send", __file__, "--to", "group:nobody")
    assert status == 1
    assert errors == "failed: test_command_line.py: not allowed, or no such address (group:nobody)\n"


async def test_no_word_of_the_server_drives_the_terminal(server: CoreServer) -> None:
    server.answer = lambda offer: {"code": "forbidden", "message": "\x1b]0;owned\x07 \x9b2J \u202egpj\nfailed: forged"}
    status, errors = await run(server, "send", __file__)
    assert status == 1
    assert errors.endswith(": \\x1b]0;owned\\x07 \\x9b2J \\u202egpj\\nfailed: forged\n")


@pytest.fixture
def odd_files(tmp_path: Path) -> list[str]:
    """Three files; the second one's name is no UTF-8, and has an escape in it."""
    paths = [os.path.join(os.fsencode(tmp_path), name) for name in (b"a.txt", b"m\xff\x1b.txt", b"z.txt")]
    for path in paths:
        Path(os.fsdecode(path)).write_bytes(path)
    return [os.fsdecode(path) for path in paths]


async def test_no_name_of_a_file_drives_the_terminal(server: CoreServer, odd_files: list[str]) -> None:
    status, errors = await run(server, "send", *odd_files)
    assert status == 0, errors
    names = {stored.offer.name for stored in server.uploads.values()}
    assert names == {"a.txt", "m\N{REPLACEMENT CHARACTER}\x1b.txt", "z.txt"}
    assert "\x1b" not in errors


CANARY = "c4n4ry:1wq:Z-_.~+"


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--token", CANARY], 1),
        (["--token", f"{CANARY}\nwarning"], 2),
        (["--token", f"{CANARY}\x1b[2J"], 2),
        (["--tokn", CANARY], 2),
        ([f"--tokn={CANARY}"], 2),
        (["--token", CANARY, "--url", f"ws://name:{CANARY}@[::1"], 2),
        (["--token", CANARY, "--url", f"http://name:{CANARY}@host/"], 2),
        (["--token", CANARY, "--url", "ws://127.0.0.1:1/", "--timeout", "1"], 1),
        (["--token", CANARY, "--to", "bob"], 2),
    ],
)
@pytest.mark.parametrize("json", [True, False])
async def test_no_end_of_a_command_shows_the_token(
    arguments: list[str], status: int, json: bool, server: CoreServer
) -> None:
    server.token = "another"
    async with Command(server, "send", __file__, *arguments, json=json) as command:
        assert await command.status() == status
    assert "c4n4ry" not in f"{command.events}{command.errors}"
    assert "\x1b" not in command.errors


async def test_a_token_of_the_environment_may_end_with_a_line_feed(server: CoreServer) -> None:
    server.token = CANARY
    assert (await run(server, "send", __file__, DELIVERY_TOKEN=f"{CANARY}\n"))[0] == 0


async def test_a_refusal_is_status_1_with_its_code(server: CoreServer, file: Path) -> None:
    server.answer = lambda offer: {"code": "forbidden"}
    async with Command(server, "send", str(file)) as command:
        assert await command.status() == 1
    assert command.named("failed")[0]["code"] == "forbidden"


async def test_a_login_that_is_refused_says_what_to_do(server: CoreServer, file: Path) -> None:
    server.token = "secret"
    async with Command(server, "send", str(file), "--token", "n0b0dys") as command:
        assert await command.status() == 1
    assert "the token is wrong, expired or revoked" in command.named("failed")[0]["error"]
    assert "manage.py delivery_token USER" in command.named("failed")[0]["error"]
    assert "n0b0dys" not in json.dumps(command.events)


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
        ["send", __file__, "--to", "bob"],
        ["send", __file__, "--to", "mailto:bob"],
        ["receive", "--count", "0"],
        ["receive", "--timeout", "soon"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_an_address_without_its_kind_is_told_the_format(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["send", __file__, "--to", "bob"])
    assert "expected user:NAME, user:NUMBER or group:NAME, got 'bob'; did you mean user:bob?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["send", "--help"], ["receive", "--help"]])
def test_help_says_where_the_login_comes_from(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    assert "DELIVERY_TOKEN" in capsys.readouterr().out
