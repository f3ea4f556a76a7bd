"""One part: watched, started again, stopped; with shell scripts in place of servers."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from delivery.launch import part as part_module
from delivery.launch.console import Console
from delivery.launch.part import Keeper, Part
from delivery.launch.state import Ledger, StateDirectory

Keep = Callable[..., Keeper]


async def until(look: Callable[[], object], *, seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not look():
            await asyncio.sleep(0.01)


class Output(io.StringIO):
    """What the console has written; not a terminal."""


@pytest.fixture
def output() -> Output:
    return Output()


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory.at(tmp_path)


@pytest.fixture
async def keep(output: Output, state: StateDirectory) -> AsyncIterator[Keep]:
    console, ledger, keepers = Console(output), Ledger(state), []
    ledger.begin()

    def start(script: str, *, grace_seconds: float = 5.0) -> Keeper:
        keeper = Keeper(Part("web", "web", ("sh", "-c", script), os.environ, grace_seconds), ledger, console)
        keepers.append(keeper)
        keeper.start()
        return keeper

    yield start
    hurry = asyncio.Event()
    hurry.set()
    for keeper in keepers:
        await keeper.stop(hurry)
    console.close()


def web_pids(state: StateDirectory) -> list[int]:
    pids: list[int] = json.loads((state.root / "pids.json").read_text())["web"]
    return pids


async def test_lines_carry_the_name_of_their_part(keep: Keep, output: Output) -> None:
    keep("echo hello; printf 'no newline'; exec sleep 600")
    await until(lambda: "web     | hello\n" in output.getvalue())


async def test_part_is_ready_when_it_says_so(output: Output, state: StateDirectory) -> None:
    console, ledger = Console(output), Ledger(state)
    script = "echo starting; read go < ../go; echo worker1@host ready.; exec sleep 600"
    os.mkfifo(state.root / "go")
    part = Part(
        "worker1", "worker", ("sh", "-c", script.replace("../go", str(state.root / "go"))), os.environ, 5, " ready."
    )
    keeper = Keeper(part, ledger, console)
    keeper.start()
    await until(lambda: "starting" in output.getvalue())
    assert not keeper.ready.is_set()
    (state.root / "go").write_text("go\n")
    await asyncio.wait_for(keeper.ready.wait(), 5)
    await keeper.stop(asyncio.Event())
    console.close()


async def test_last_line_needs_no_newline(keep: Keep, output: Output) -> None:
    keep("printf bye; exit 3")
    await until(lambda: "web     | bye\n" in output.getvalue())
    await until(lambda: "web ended (exit status 3); starting it again in 0.2 s" in output.getvalue())


async def test_line_longer_than_the_limit_passes_in_pieces(keep: Keep, output: Output) -> None:
    keep("head -c 200000 /dev/zero | tr '\\0' x; echo; echo after; exec sleep 600")
    await until(lambda: "web     | after\n" in output.getvalue())
    assert output.getvalue().count("x") == 200_000


async def test_part_that_keeps_ending_waits_longer_each_time(
    keep: Keep, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_module, "BACKOFF_FIRST_SECONDS", 0.1)
    keep("exit 1")
    await until(lambda: all(f"again in {delay} s" in output.getvalue() for delay in ("0.1", "0.2", "0.4")))


async def test_part_that_cannot_be_started_says_why(output: Output, state: StateDirectory) -> None:
    console, ledger = Console(output), Ledger(state)
    keeper = Keeper(Part("web", "web", ("/nowhere/server",), os.environ, 1.0), ledger, console)
    keeper.start()
    await until(lambda: "No such file or directory" in output.getvalue())
    await keeper.stop(asyncio.Event())
    console.close()


async def test_pids_follow_a_restart(keep: Keep, state: StateDirectory) -> None:
    keep("exec sleep 600")
    await until(lambda: web_pids(state))
    [first] = web_pids(state)
    os.kill(first, signal.SIGKILL)
    await until(lambda: web_pids(state) and web_pids(state) != [first])


async def test_disk_that_is_full_does_not_let_go_of_the_process(
    keep: Keep, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Ledger, "_write", full)
    keep("echo up; exec sleep 600")
    await until(lambda: "| up" in output.getvalue() and "cannot record the processes: no space" in output.getvalue())


async def test_stop_is_sigterm_and_no_new_start(keep: Keep, output: Output, state: StateDirectory) -> None:
    keeper = keep("trap 'echo stopping; exit 0' TERM; echo up; while :; do sleep 0.01; done")
    await until(lambda: "| up" in output.getvalue())
    await keeper.stop(asyncio.Event())
    await until(lambda: "| stopping" in output.getvalue())
    assert web_pids(state) == []
    assert "starting it again" not in output.getvalue()


async def test_part_that_does_not_stop_is_killed_with_its_children(keep: Keep, output: Output) -> None:
    keeper = keep("trap '' TERM; sleep 600 & echo $!; while :; do wait; done", grace_seconds=0.2)
    await until(lambda: "\n" in output.getvalue())
    child = int(output.getvalue().split("|")[1])
    await keeper.stop(asyncio.Event())
    await until(lambda: "web does not end; killing it" in output.getvalue())
    await until(lambda: not _runs(child))


async def test_hurry_cuts_the_grace_short(keep: Keep, output: Output) -> None:
    keeper = keep("trap '' TERM; echo up; while :; do sleep 0.01; done", grace_seconds=600)
    await until(lambda: "| up" in output.getvalue())
    hurry = asyncio.Event()
    stopping = asyncio.create_task(keeper.stop(hurry))
    hurry.set()
    await asyncio.wait_for(stopping, 5)


async def test_children_of_a_killed_part_go_with_it(keep: Keep, output: Output, state: StateDirectory) -> None:
    keep("sleep 600 & echo $!; wait")
    await until(lambda: "\n" in output.getvalue())
    child = int(output.getvalue().split("|")[1])
    os.kill(web_pids(state)[0], signal.SIGKILL)
    await until(lambda: not _runs(child))


async def test_stop_during_the_wait_before_a_restart_returns_at_once(
    keep: Keep, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_module, "BACKOFF_FIRST_SECONDS", 600.0)
    keeper = keep("exit 0")
    await until(lambda: "again in 600.0 s" in output.getvalue())
    await asyncio.wait_for(keeper.stop(asyncio.Event()), 5)


def _runs(pid: int) -> bool:
    from delivery.launch.identity import mark_of

    return mark_of(pid) is not None
