"""Clients: killed, frozen, started again with the same command in the same folder."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

from faults.cells import cell
from faults.commands import Command
from faults.people import Move, digest_of, every
from faults.site import Person
from faults.trial import MIB, Trial
from rig.proxy import Conditions, Proxy

RATE = 20e6
SIZES = (24 * MIB - 1, 32 * MIB, 40 * MIB + 77)
FROZEN_SECONDS = 30.0


async def _sender(trial: Trial) -> tuple[Command, Move]:
    """A command that sends to a recipient in this process."""
    people = await trial.people(2)
    size = trial.random.choice(SIZES)
    path = trial.folder / "big.bin"
    path.write_bytes(trial.data("big.bin", size))
    recipient = await trial.party("recipient", people[1], receive=True)
    recipient.expect("big.bin", size)
    recipient.receive()
    return await _command(trial, people[0], "big.bin", size, "send", str(path), "--to", people[1].address)


async def _receiver(trial: Trial, *options: str) -> tuple[Command, Move]:
    """A command that receives what the site delivers."""
    people = await trial.people(1)
    size = trial.random.choice(SIZES)
    await trial.deliver("before.bin", size, people)
    folder = trial.folder / "received"
    folder.mkdir()
    arguments = ("receive", "--dir", str(folder), "--count", "1", *options)
    return await _command(trial, people[0], "before.bin", size, *arguments)


async def _command(trial: Trial, person: Person, name: str, size: int, *arguments: str) -> tuple[Command, Move]:
    network = await trial.enter(Proxy(trial.stack.port, Conditions(rate=RATE)))
    command = Command(arguments[0], person, network.ws_url, trial.folder / "state", *arguments)
    trial.commands.append(command)
    move = command.moves[name] = Move(arguments[0], name, size)
    trial.moves.append(move)
    await command.run()
    return command, move


async def _reach(trial: Trial, move: Move) -> None:
    share = 0.05 + trial.random.random() * 0.8
    trial.note(f"at {share:.0%} of {move.size}")
    if await every([move], seconds=60, look=lambda one: one.share >= share):
        raise TimeoutError(f"{move.who} did not reach {share:.0%} undisturbed")


async def _end(trial: Trial, command: Command, move: Move) -> None:
    left = await every([move], seconds=60)
    status = await asyncio.wait_for(command.wait(), 20) if not left else None
    trial.check(status == 0, f"{move.who} ended with {status}: {list(command.complaints)[-3:]}")


async def _killed(trial: Trial, command: Command, move: Move) -> None:
    for number in range(2):
        if number and trial.random.random() < 0.5:
            break
        await _reach(trial, move)
        if move.ended is not None:
            break
        trial.broken()
        await command.kill()
        await command.run()
        trial.healed()
    await _end(trial, command, move)


async def _frozen(trial: Trial, command: Command, move: Move) -> None:
    await _reach(trial, move)
    trial.broken()
    command.send(signal.SIGSTOP)
    await asyncio.sleep(3 if trial.hurry else FROZEN_SECONDS)
    command.send(signal.SIGCONT)
    trial.healed()
    await _end(trial, command, move)


async def _saved_once(trial: Trial) -> None:
    """The folder holds the payload under its name, nothing else, and nothing half done."""
    folder = trial.folder / "received"
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    parts = list(folder.rglob("*.part"))
    trial.check(files == ["before.bin"] and not parts, f"the folder holds {files} and {len(parts)} parts")
    right = Path(folder / "before.bin").exists() and digest_of(folder / "before.bin") == trial.digests["before.bin"]
    trial.check(right, "what was saved is something else")


@cell("client: send killed, the same command again")
async def send_killed(trial: Trial) -> None:
    await _killed(trial, *await _sender(trial))


@cell("client: send SIGSTOP 30 s")
async def send_frozen(trial: Trial) -> None:
    await _frozen(trial, *await _sender(trial))


@cell("client: receive killed, again in the same folder", quick=True)
async def receive_killed(trial: Trial) -> None:
    await _killed(trial, *await _receiver(trial))
    await _saved_once(trial)


@cell("client: receive SIGSTOP 30 s")
async def receive_frozen(trial: Trial) -> None:
    await _frozen(trial, *await _receiver(trial))
    await _saved_once(trial)


@cell("client: receive's part removed, again in the same folder")
async def receive_part_removed(trial: Trial) -> None:
    command, move = await _receiver(trial)
    await _reach(trial, move)
    trial.broken()
    for part in (trial.folder / "received").rglob("*.part"):
        part.unlink()
    status = await asyncio.wait_for(command.wait(), 60)
    trial.check(status == 1, f"receive ended with {status} although its part was removed")
    await command.run()
    trial.healed()
    await _end(trial, command, move)
    await _saved_once(trial)


@cell("client: receive killed as the file gets its name")
async def receive_killed_at_its_name(trial: Trial) -> None:
    command, move = await _receiver(trial, "--timeout", "10")
    named = trial.folder / "received" / "before.bin"
    deadline = time.monotonic() + 60
    while not named.exists() and time.monotonic() < deadline:
        await asyncio.sleep(0.0002)
    trial.broken()
    await command.kill()
    await command.run()
    trial.healed()
    status = await asyncio.wait_for(command.wait(), 60)
    await _saved_once(trial)
    if status != 0:  # the server had heard it already, and has nothing to offer: its rows are looked at in the end
        trial.note("killed after its done")
        move.ended, move.sha256 = time.monotonic(), digest_of(named)
