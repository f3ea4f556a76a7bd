"""The web process: told to go, killed, frozen."""

from __future__ import annotations

import asyncio
import signal

from faults.cells import cell
from faults.people import every
from faults.trial import MIB, Trial
from rig.processes import send
from rig.waiting import until

LIVE = 50
#: Bytes per second of a recipient, and of a sender. A close waits behind what is on its way, and for 2 s at most: what
#: the kernels hold of a slower recipient takes longer, and it sees 1006.
RECIPIENT_RATE, SENDER_RATE = 2e6, 0.5e6
RECIPIENT_BYTES, SENDER_BYTES = 16 * MIB + 1, 6 * MIB + 1


async def _gone(trial: Trial, number: signal.Signals) -> None:
    await trial.begin()
    await trial.moment()
    pid = trial.stack.pid("web")
    trial.broken()
    send(pid, number)
    await trial.stack.until_replaced("web", pid)
    await trial.stack.until_listening()
    trial.healed()


@cell("web: SIGTERM")
async def terminated(trial: Trial) -> None:
    await _gone(trial, signal.SIGTERM)
    await asyncio.sleep(0.5)
    for party in trial.parties:
        seen = set(party.watch.closes)
        trial.check(seen <= {1001}, f"{party.name} saw {sorted(seen)} instead of 1001")


@cell("web: SIGTERM under 50 live transfers", deadline=120, most_recovery=30)
async def terminated_under_load(trial: Trial) -> None:
    """Half of them uploads, half deliveries, each on a socket of its own: every one is told 1001, and nothing else."""
    people = await trial.people(LIVE)
    receivers, senders = people[: LIVE // 2], people[LIVE // 2 :]
    await trial.deliver("down.bin", RECIPIENT_BYTES, receivers)
    for number, person in enumerate(receivers):
        party = await trial.party(f"recipient{number}", person, rate=RECIPIENT_RATE, receive=True)
        party.expect("down.bin", RECIPIENT_BYTES)
        party.receive()
    for number, person in enumerate(senders):
        party = await trial.party(f"sender{number}", person, rate=SENDER_RATE, chunk_size=64 * 1024)
        party.send(trial.data(f"up{number}.bin", SENDER_BYTES), [], f"up{number}.bin")
    if await every(trial.moves, seconds=60, look=lambda move: move.began is not None and move.stored > 0):
        raise TimeoutError("not all transfers began")
    live = sum(move.moving for move in trial.moves)
    trial.check(live == LIVE, f"{live} transfers were live, expected {LIVE}")
    pid = trial.stack.pid("web")
    trial.broken()
    send(pid, signal.SIGTERM)
    await trial.stack.until_replaced("web", pid)
    await trial.stack.until_listening()
    trial.healed()
    await until(lambda: all(party.watch.closes for party in trial.parties), what="close of every socket", seconds=20)
    codes = {code for party in trial.parties for code in party.watch.closes}
    trial.note(f"{live} live transfers; closes seen: {sorted(codes)}")
    trial.check(codes == {1001}, f"close codes {sorted(codes)}, expected 1001 alone")


@cell("web: SIGKILL", orphans=True, quick=True)
async def killed(trial: Trial) -> None:
    await _gone(trial, signal.SIGKILL)


@cell("web: SIGSTOP 30 s")
async def frozen(trial: Trial) -> None:
    await trial.begin()
    await trial.moment()
    pid = trial.stack.pid("web")
    trial.broken()
    send(pid, signal.SIGSTOP)
    await asyncio.sleep(3 if trial.hurry else 30)
    send(pid, signal.SIGCONT)
    trial.healed()
