"""Many at once: through a restart of the web process, and beside one who takes everything and says nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import statistics
import time

import websockets

from delivery.client import connect
from delivery.errors import DeliveryError
from faults.cells import cell
from faults.people import Move, Watch
from faults.site import Person
from faults.trial import KIB, MIB, Trial
from rig.processes import send

CLIENTS, USERS = 200, 20
SIZE = 4 * MIB + 77
RECIPIENTS = 20
EACH_RATE = 4e6


@cell("crowd: 200 clients through a web restart", deadline=150, most_recovery=30)
async def restarted(trial: Trial) -> None:
    people = await trial.people(USERS)
    data = trial.data("crowd.bin", SIZE)
    watches, moves = [], []
    tasks = []
    for number in range(40 if trial.hurry else CLIENTS):
        watch, move = Watch(f"client{number}"), Move(f"client{number}", "crowd.bin", SIZE)
        watches.append(watch)
        moves.append(move)
        tasks.append(asyncio.create_task(_upload(trial, people[number % USERS], data, watch, move)))
    trial.moves += moves
    while sum(move.stored > 0 or move.ended is not None for move in moves) < len(moves) // 3:
        await asyncio.sleep(0.01)
    live = sum(move.moving for move in moves)
    pid = trial.stack.pid("web")
    trial.broken()
    send(pid, signal.SIGTERM)
    await trial.stack.until_replaced("web", pid)
    await trial.stack.until_listening()
    trial.healed()
    await asyncio.wait(tasks, timeout=trial.deadline)
    codes = sorted({code for watch in watches for code in watch.closes})
    trial.note(f"{live} live transfers; closes seen: {codes}")
    trial.check(set(codes) <= {1001}, f"close codes {codes}, expected 1001 alone")
    for watch in watches:
        trial.outcome.problems += watch.problems


async def _upload(trial: Trial, person: Person, data: bytes, watch: Watch, move: Move) -> None:
    def note(progress: object) -> None:
        move.note(progress)
        watch.acked(move.name, move.stored)

    move.began = time.monotonic()
    try:
        async with connect(trial.stack.ws_url, person.token, observer=watch, chunk_size=64 * KIB) as client:
            receipt = await client.send(data, name=move.name, progress=note, deadline=trial.deadline)
            move.payload, move.sha256 = str(receipt.payload), receipt.sha256
            trial.more_again.append(client.statistics.resent_bytes)
    except (DeliveryError, OSError, TimeoutError) as error:
        move.error = error
    move.ended = time.monotonic()


@cell("crowd: 1 of 20 recipients never acks", deadline=120)
async def one_is_silent(trial: Trial) -> None:
    """The other 19 must take no longer than without it."""
    undisturbed = await _fan_out(trial, silent=False)
    disturbed = await _fan_out(trial, silent=True)
    trial.note(f"the others took {disturbed:.2f} s, undisturbed {undisturbed:.2f} s")
    trial.check(
        disturbed <= 1.1 * undisturbed + 0.3, f"the others took {disturbed:.2f} s instead of {undisturbed:.2f} s"
    )


async def _fan_out(trial: Trial, *, silent: bool) -> float:
    """Deliver one payload to 20 people; return how long it took those who take it properly, as a median."""
    name = "silent.bin" if silent else "proper.bin"
    people = await trial.people(RECIPIENTS)
    await trial.deliver(name, 16 * MIB, people)
    proper = people[1:]
    began = time.monotonic()
    quiet = asyncio.create_task(_take_and_say_nothing(trial.stack.ws_url, people[0])) if silent else None
    if quiet is not None:
        trial.may_wait = True
    moves = []
    for number, person in enumerate(proper):
        party = await trial.party(f"{name}-{number}", person, rate=EACH_RATE, receive=True)
        moves.append(party.expect(name, 16 * MIB))
        party.receive()
    while any(move.ended is None for move in moves) and time.monotonic() < began + 60:
        await asyncio.sleep(0.02)
    if quiet is not None:
        quiet.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await quiet
    return statistics.median((move.ended or time.monotonic()) - (move.began or began) for move in moves)


async def _take_and_say_nothing(url: str, person: Person) -> None:
    """A client that accepts what is offered with a wide limit, reads all that comes, and never acks."""
    headers = {"Authorization": f"Bearer {person.token}"}
    async with websockets.connect(
        url, subprotocols=["delivery.v1"], additional_headers=headers, max_size=None, compression=None
    ) as socket:
        hello = {"type": "hello", "client": "silent", "max_message": 4 * MIB, "receive": True}
        await socket.send(json.dumps(hello))
        async for message in socket:
            if not isinstance(message, str):
                continue
            said = json.loads(message)
            if said["type"] == "offer":
                kept = {name: said[name] for name in ("transfer", "handle", "chunk_size")}
                await socket.send(json.dumps({"type": "accept", **kept, "seq": 0, "limit": 64}))
            elif said["type"] == "ping":
                await socket.send(json.dumps({"type": "pong", "id": said["id"]}))
